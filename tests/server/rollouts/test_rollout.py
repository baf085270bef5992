"""/v1/rl/rollout against single requests: same tokens, both log-probabilities, rewards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.models.heads import ClassificationHead
from mlx_parallm.models.loader import LoadedModel
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

ROLLOUT = "/v1/rl/rollout"
PROMPTS = [[40 + place % 60 for place in range(40)], [7, 8, 9]]
HOT = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "max_tokens": 12, "repetition_penalty": 1.2}


def lines(served: Any, **body: Any) -> list[Any]:
    answer = served.post(ROLLOUT, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def samples(served: Any, **body: Any) -> list[Any]:
    """In the order of their indices."""
    *found, last = lines(served, **body)
    assert last["object"] == "rollout" and last["usage"]["completion_tokens"] == sum(
        len(sample["token_ids"]) for sample in found
    )
    return sorted(found, key=lambda sample: sample["index"])


@pytest.mark.parametrize("model", ["base", "policy"])
def test_samples_are_those_of_single_requests(served: Any, model: str) -> None:
    found = samples(served, model=model, prompt=PROMPTS, n=3, **HOT)
    assert [(s["prompt_index"], s["sample_index"]) for s in found] == [
        (i, j) for i in range(2) for j in range(3)
    ]
    for sample in found:
        ids = PROMPTS[sample["prompt_index"]]
        seeded = HOT | {"seed": 5 + sample["sample_index"]}
        for mode, name in [
            ("raw_logprobs", "logprobs"),
            ("processed_logprobs", "processed_logprobs"),
        ]:
            body = {"model": model, "prompt": ids, "logprobs": 0, "logprobs_mode": mode}
            answer = served.ok("/v1/completions", return_token_ids=True, **body, **seeded)
            (alone,) = answer["choices"]
            assert sample["prompt_token_ids"] == ids
            assert sample["token_ids"] == alone["token_ids"]
            assert sample["text"] == alone["text"]
            assert sample["finish_reason"] == alone["finish_reason"]
            assert sample[name] == pytest.approx(alone["logprobs"]["token_logprobs"], abs=1e-5)
        assert sample["logprobs"] != pytest.approx(sample["processed_logprobs"], abs=1e-3)
        version = 1 if model == "policy" else 0
        assert sample["weight_versions"] == [version] * len(sample["token_ids"])
    whole = served.ok(ROLLOUT, model=model, prompt=PROMPTS, n=3, stream=False, **HOT)
    assert [s["token_ids"] for s in whole["samples"]] == [s["token_ids"] for s in found]
    assert whole["model"] == model


def test_conversations_become_the_chats_prompts(served: Any) -> None:
    chats = [[{"role": "user", "content": text}] for text in ("one", "two")]
    for messages in (chats, chats[0]):
        found = samples(served, messages=messages, max_tokens=1)
        for sample, chat in zip(found, chats, strict=False):
            body = {"messages": chat, "max_tokens": 1, "return_token_ids": True}
            wanted = served.ok("/v1/chat/completions", **body)["prompt_token_ids"]
            assert sample["prompt_token_ids"] == wanted
    wrong = served.post(ROLLOUT, messages=[chats[0], [{"role": "user"}]])
    assert wrong.json()["error"]["param"] == "messages.1.0.content"


def test_alternatives_and_stop_strings(served: Any) -> None:
    (sample,) = samples(served, prompt="abc", max_tokens=3, logprobs=4, temperature=0)
    tops = sample["top_logprobs"]
    assert [len(top) for top in tops] == [4, 4, 4]
    assert [top[0]["token_id"] for top in tops] == sample["token_ids"]
    assert [top[0]["logprob"] for top in tops] == sample["logprobs"]
    (long,) = samples(served, prompt="abc", max_tokens=12, temperature=0, ignore_eos=True)
    stop = long["text"][4:6]
    (cut,) = samples(served, prompt="abc", max_tokens=12, temperature=0, ignore_eos=True, stop=stop)
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
    assert cut["text"] == long["text"][: long["text"].index(stop)]


@pytest.mark.parametrize("stream", [True, False])
def test_rewards_are_the_heads(
    served: Any,
    head: ClassificationHead,
    llama_factory: Callable[..., LoadedModel],
    stream: bool,
) -> None:
    body = {"prompt": PROMPTS, "n": 2, "max_tokens": 6, "reward_model": "base", "stream": stream}
    found = samples(served, **body) if stream else served.ok(ROLLOUT, **body)["samples"]
    assert len(found) == 4
    model = llama_factory().model
    for sample in found:
        ids = sample["prompt_token_ids"] + sample["token_ids"]
        hidden = np.array(model.model(mx.array([ids]))[0, -1].astype(mx.float32))
        assert sample["reward"] == pytest.approx(float(head.logits(hidden)[0]), abs=1e-3)
    wait_until(lambda: served.engine.num_live == 0, 120)


def pause_when_both_decode(scheduler: Any, patch: pytest.MonkeyPatch) -> None:
    """As /pause?mode=keep does, in the first step that decodes two rows."""
    schedule = scheduler.schedule

    def once() -> Any:
        plan = schedule()
        if len(plan.decode) == 2:
            scheduler.paused = True
            patch.undo()
        return plan

    patch.setattr(scheduler, "schedule", once)


def test_rollouts_give_way_to_urgent_requests(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a higher `priority`; what they sample stays the same."""
    body = {"prompt": PROMPTS, "max_tokens": 60, "ignore_eos": True, "seed": 3, "priority": 7}
    wanted = samples(served, **body)
    scheduler = served.engine.scheduler
    before = scheduler.preemptions
    found: list[Any] = []
    rollout = threading.Thread(target=lambda: found.extend(samples(served, **body)))
    pause_when_both_decode(scheduler, monkeypatch)
    rollout.start()
    wait_until(lambda: scheduler.paused, 120)
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
    answers: list[Any] = []

    def ask(path: str, asked: dict[str, Any]) -> None:
        answers.append(served.post(path, **asked))

    urgent = [
        threading.Thread(target=ask, args=("/v1/chat/completions", chat)),
        threading.Thread(target=ask, args=("/v1/completions", {"prompt": "a"})),
    ]
    for thread in urgent:
        thread.start()
    wait_until(lambda: served.engine.num_live == 4, 120)
    assert served.http.post("/resume").status_code == 200
    for thread in (*urgent, rollout):
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert scheduler.preemptions - before == 2
    assert [s["token_ids"] for s in found] == [s["token_ids"] for s in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"prompt": ["a"] * 20, "n": 100}, "n"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs_mode": "raw_logprobs"}, "logprobs_mode"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "reward_model": "other"}, "reward_model"),
        ({"prompt": "a", "reward": 1}, "reward"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"messages": "a"}, "messages"),
        ({"messages": [[]]}, "messages.0"),
    ],
)
def test_wrong_input(served: Any, body: dict[str, Any], param: str) -> None:
    answer = served.post(ROLLOUT, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
