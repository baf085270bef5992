"""What is told about tokens: ids, alternatives that were named, modes, times; vLLM's shapes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mlx_parallm.server.schemas.chat import ChatCompletionResponse
from mlx_parallm.server.schemas.completions import CompletionResponse

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
SAYS = [{"role": "user", "content": "ab"}]
IDS = [100, 101, 0]  # "ab" and the end, which is a generated token


def test_completions_return_token_ids(server: Any) -> None:
    answer = server.ok(COMPLETIONS, prompt=["ab", "c"], return_token_ids=True)
    CompletionResponse.model_validate(answer, strict=True)
    first, second = answer["choices"]
    assert (first["prompt_token_ids"], first["token_ids"]) == ([100, 101], IDS)
    assert (second["prompt_token_ids"], second["token_ids"]) == ([102], [102, 0])
    without = server.ok(COMPLETIONS, prompt="ab")["choices"][0]
    assert not {"token_ids", "prompt_token_ids"} & set(without)


def test_streams_of_completions_return_each_token_once(server: Any) -> None:
    body = {"prompt": ["xaSTO", "é"], "n": 2, "stop": ["STOP"], "return_token_ids": True}
    whole = server.ok(COMPLETIONS, **body)["choices"]
    events = server.events(COMPLETIONS, **body, logprobs=0, return_tokens_as_token_ids=True)
    for choice in whole:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert all("prompt_token_ids" not in one for one in mine[1:])
        ids = list(itertools.chain(*(one["token_ids"] for one in mine)))
        assert ids == choice["token_ids"]
        # Each event's tokens and log-probabilities belong together.
        for one in mine:
            names = one["logprobs"]["tokens"] if one["logprobs"] else []
            assert names == [f"token_id:{token}" for token in one["token_ids"]]


def test_chat_returns_token_ids(server: Any) -> None:
    answer = server.ok(CHAT, messages=SAYS, n=2, return_token_ids=True)
    ChatCompletionResponse.model_validate(answer, strict=True)
    assert answer["prompt_token_ids"] == [1, 100, 101, 2]
    assert [choice["token_ids"] for choice in answer["choices"]] == [IDS, IDS]
    events = server.events(CHAT, messages=SAYS, return_token_ids=True)
    assert events[0]["prompt_token_ids"] == [1, 100, 101, 2]
    assert all("prompt_token_ids" not in event for event in events[1:])
    ids = [event["choices"][0].get("token_ids", []) for event in events]
    assert list(itertools.chain(*ids)) == IDS
    assert "token_ids" not in server.events(CHAT, messages=SAYS)[1]["choices"][0]


def test_metrics_on_request(server: Any) -> None:
    for path, body in ((CHAT, {"messages": SAYS}), (COMPLETIONS, {"prompt": "ab"})):
        answer = server.ok(path, **body, include_metrics=True)
        assert set(answer["metrics"]) == {
            "time_to_first_token_ms",
            "generation_time_ms",
            "queue_time_ms",
            "mean_itl_ms",
            "tokens_per_second",
        }
        assert 0 < answer["metrics"]["mean_itl_ms"] < answer["metrics"]["generation_time_ms"]
        assert "metrics" not in server.ok(path, **body)
        # With several answers a time belongs to none of them.
        assert server.ok(path, **body, n=2, include_metrics=True)["metrics"] is None
        last = server.events(path, **body, include_metrics=True)[-1]
        assert last["choices"] == []
        assert last["metrics"]["time_to_first_token_ms"] > 0


@pytest.mark.parametrize(
    ("param", "path", "body"),
    [
        ("use_beam_search", COMPLETIONS, {"use_beam_search": True}),
        ("logprob_token_ids", COMPLETIONS, {"logprob_token_ids": [1]}),
        ("logprob_token_ids", CHAT, {"logprob_token_ids": [1]}),
        ("logprob_token_ids", CHAT, {"logprob_token_ids": [259], "logprobs": True}),
        (
            "logprob_token_ids",
            COMPLETIONS,
            {"logprob_token_ids": [1], "logprobs": 0, "echo": True, "max_tokens": 0},
        ),
        ("logprobs", COMPLETIONS, {"logprobs": 21}),
        ("logprobs", COMPLETIONS, {"logprobs": -1}),
        ("logprobs", COMPLETIONS, {"logprobs": -2}),
        ("prompt_logprobs", CHAT, {"prompt_logprobs": 21}),
        ("top_logprobs", CHAT, {"top_logprobs": -1, "logprobs": True}),
        ("top_logprobs", CHAT, {"top_logprobs": -1}),
        ("allowed_token_ids", CHAT, {"allowed_token_ids": []}),
        ("allowed_token_ids", CHAT, {"allowed_token_ids": [259]}),
        ("logprobs_mode", CHAT, {"logprobs_mode": "cooked"}),
        ("truncation_side", CHAT, {"truncation_side": "middle"}),
    ],
)
def test_wrong_values_are_named(server: Any, param: str, path: str, body: dict[str, Any]) -> None:
    asked = {"messages": SAYS} if path == CHAT else {"prompt": "ab"}
    response = server.post(path, **asked, **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_null_is_the_default_everywhere(server: Any) -> None:
    names = (
        *("prompt_logprobs", "logprob_token_ids", "allowed_token_ids", "return_token_ids"),
        *("logprobs_mode", "truncation_side", "truncate_prompt_tokens", "include_metrics"),
        "use_beam_search",
    )
    nulls = dict.fromkeys(names)
    assert "prompt_logprobs" not in server.ok(CHAT, messages=SAYS, **nulls, top_logprobs=None)
    assert "token_ids" not in server.ok(COMPLETIONS, prompt="ab", **nulls)["choices"][0]


def test_prompts_are_cut_at_either_side(server: Any) -> None:
    cut: dict[str, Any] = {
        "prompt": "abcdef",
        "truncate_prompt_tokens": 2,
        "return_token_ids": True,
    }
    for side, ids in (("left", [104, 105]), ("right", [100, 101])):
        choice = server.ok(COMPLETIONS, **cut, truncation_side=side)["choices"][0]
        assert choice["prompt_token_ids"] == ids
    answer = server.ok(
        CHAT,
        messages=SAYS,
        truncate_prompt_tokens=3,
        truncation_side="right",
        return_token_ids=True,
    )
    assert answer["prompt_token_ids"] == [1, 100, 101]


def test_a_server_may_give_more_logprobs(serve: Any) -> None:
    server = serve(max_logprobs=100, logprobs_mode="processed_logits")
    answer = server.ok(CHAT, messages=SAYS, logprobs=True, top_logprobs=100)
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 100
    assert server.engine.submitted[-1].params.logprobs_mode == "processed_logits"
    assert server.post(COMPLETIONS, prompt="a", logprobs=101).status_code == 400
    server.ok(COMPLETIONS, prompt="a", logprobs=1, logprobs_mode="raw_logprobs")
    assert server.engine.submitted[-1].params.logprobs_mode == "raw_logprobs"


def test_minus_one_is_the_whole_vocabulary(serve: Any) -> None:
    server = serve(max_logprobs=-1)
    answer = server.ok(CHAT, messages=SAYS, logprobs=True, top_logprobs=-1, prompt_logprobs=-1)
    assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 259
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"][1]) == 259
    choice = server.ok(COMPLETIONS, prompt="a", logprobs=-1, return_tokens_as_token_ids=True)
    assert len(choice["choices"][0]["logprobs"]["top_logprobs"][0]) == 259


def test_invocations_go_where_their_fields_belong(server: Any) -> None:
    assert server.ok("/invocations", messages=SAYS)["object"] == "chat.completion"
    assert server.ok("/invocations", prompt="ab")["choices"][0]["text"] == "ab"
    events = server.events("/invocations", messages=SAYS)
    assert events[0]["object"] == "chat.completion.chunk"
    scores = server.ok("/invocations", prompt="ab", continuations=["c", "d"])
    assert len(scores["data"]) == 2
    wrong = server.post("/invocations", prompt=5)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")
    assert server.post("/invocations", question="?").status_code == 400
    assert server.http.post("/invocations", json=[1]).status_code == 400


CHATML = (
    "{% for m in messages %}<|user|>{{ m.role }}:{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PICKY = CHATML.replace("{{ m.role }}:", "{% if m.role == 'critic' %}C:{% endif %}")


def test_roles_that_the_template_takes(serve: Any, server: Any) -> None:
    critic = [*SAYS, {"role": "critic", "content": "no"}]
    king = [*SAYS, {"role": "king", "content": "no"}]
    any_role, one_role = serve(), serve()
    any_role.engine.loaded.tokenizer.chat_template = CHATML
    one_role.engine.loaded.tokenizer.chat_template = PICKY
    for taken, roles in ((server, ()), (one_role, (critic,)), (any_role, (critic, king))):
        for messages in (critic, king):
            response = taken.post(CHAT, messages=messages)
            if messages in roles:
                assert response.status_code == 200, response.text
            else:
                assert response.status_code == 400
                assert response.json()["error"]["param"] == "messages.1.role"
