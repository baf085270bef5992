"""Token-in, token-out requests as vLLM's, SGLang's, atropos' and TRL's clients record them."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("no_compile")

IDS = [40 + place % 60 for place in range(20)]
GENERATE = "/inference/v1/generate"
COMPLETIONS = "/v1/completions"
HOT: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "max_tokens": 6}


def alone(served: Any, mode: str = "raw_logprobs", **body: Any) -> Any:
    """The choices of /v1/completions."""
    fields = {"return_token_ids": True, "logprobs_mode": mode, "logprobs": 2} | body
    return served.ok(COMPLETIONS, prompt=IDS, **fields)["choices"]


def token_logprobs(choice: Any) -> Any:
    return pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-5)


# vLLM's /inference/v1/generate


def test_what_the_renderers_client_sends(served: Any) -> None:
    """verifiers and prime-rl: sampling_params, cache_salt, priority; ids as "token_id:17"."""
    body = {
        "model": "policy",
        "token_ids": IDS,
        "sampling_params": HOT
        | {
            "logprobs": 2,
            "stop_token_ids": [3],
            "skip_special_tokens": False,
            "flat_logprobs": True,
            "detokenize": False,
            "extra_args": {"prl_compact_logprobs": True},
        },
        "cache_salt": "step-7",
        "priority": 2,
    }
    answer = served.ok(GENERATE, **body)
    (wanted,) = alone(served, model="policy", stop_token_ids=[3], **HOT)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == wanted["token_ids"]
    assert choice["finish_reason"] == wanted["finish_reason"]
    content = choice["logprobs"]["content"]
    assert [one["token"] for one in content] == [f"token_id:{t}" for t in choice["token_ids"]]
    assert [one["token_id"] for one in content] == choice["token_ids"]
    assert [one["logprob"] for one in content] == token_logprobs(wanted)
    for one in content:
        tops = one["top_logprobs"]
        assert tops[0]["token_id"] == one["token_id"] and len(tops) in (2, 3)
        assert [t["rank"] for t in tops if t["rank"] is not None and t is not tops[0]] == sorted(
            t["rank"] for t in tops[1:]
        )
    assert choice["weight_versions"] == [
        {"version": "1", "start": 0, "end": len(choice["token_ids"])}
    ]
    assert answer["usage"]["prompt_tokens"] == len(IDS)
    assert "prompt_token_ids" not in answer and answer["model"] == "policy"


def test_scores_of_a_prompt(served: Any) -> None:
    """prime-rl's prefill_logprobs: the first entry of each token is the token's own."""
    sampling = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "prompt_logprobs": 1}
    answer = served.ok(GENERATE, model="base", token_ids=IDS, sampling_params=sampling)
    echoed = served.ok(COMPLETIONS, prompt=IDS, echo=True, logprobs=1, max_tokens=0)
    wanted = echoed["choices"][0]["logprobs"]["token_logprobs"]
    entries = answer["prompt_logprobs"]
    assert entries[0] is None and len(entries) == len(IDS)
    for token, entry, value in zip(IDS[1:], entries[1:], wanted[1:], strict=True):
        first = next(iter(entry))
        assert (int(first), entry[first]["logprob"]) == (token, pytest.approx(value, abs=1e-5))


def test_events_and_texts(served: Any) -> None:
    body = {"token_ids": IDS, "sampling_params": HOT | {"logprobs": 1}, "request_id": "mine"}
    whole = served.ok(GENERATE, output_mode="text", return_token_ids=True, **body)
    assert (whole["request_id"], whole["prompt_token_ids"]) == ("mine", IDS)
    (choice,) = whole["choices"]
    events = served.events(GENERATE, stream_options={"include_usage": True}, **body)
    *pieces, usage = events
    assert usage["usage"] == whole["usage"] and usage["choices"] == []
    streamed = [event["choices"][0] for event in pieces]
    assert [token for piece in streamed for token in piece["token_ids"]] == choice["token_ids"]
    assert streamed[-1]["finish_reason"] == choice["finish_reason"]
    assert streamed[-1]["weight_versions"] == choice["weight_versions"]
    assert choice["text"] == alone(served, **HOT)[0]["text"]
    spelled = [token["bytes"] for token in choice["logprobs"]["content"]]
    assert bytes(itertools.chain(*spelled)).decode(errors="replace") == choice["text"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [99999]}, "token_ids"),
        ({"sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"sampling_params": {"nothing": 1}}, "sampling_params.nothing"),
        ({"sampling_params": {"stream": True}}, "sampling_params.stream"),
        ({"sampling_params": {"logprobs": 50}}, "sampling_params.logprobs"),
        ({"sampling_params": {"max_tokens": 9999}}, "sampling_params.max_tokens"),
        ({"features": {}}, "features"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_wrong_tokens(served: Any, body: dict[str, Any], param: str) -> None:
    answer = served.post(GENERATE, **{"token_ids": IDS, "sampling_params": {}, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


# /generate


def test_what_atropos_sends_to_vllm(served: Any) -> None:
    body = {"prompt": {"prompt_token_ids": IDS}, "logprobs": 0, "n": 3} | HOT
    answer = served.ok("/generate", **body)
    wanted = alone(served, n=3, **HOT)
    assert answer["finish_reasons"] == [choice["finish_reason"] for choice in wanted]
    assert answer["token_ids"] == [choice["token_ids"] for choice in wanted]
    assert answer["text"] == [choice["text"] for choice in wanted]
    for one, choice in zip(answer["logprobs"], wanted, strict=True):
        # As atroposlib reads it.
        assert [int(next(iter(item[0]))) for item in one] == choice["token_ids"]
        assert [next(iter(item[0].values())) for item in one] == token_logprobs(choice)
    scored = {"prompt": {"prompt_token_ids": IDS}, "prompt_logprobs": 2, "max_tokens": 1, "n": 1}
    entries = served.ok("/generate", temperature=0.0, top_p=1.0, **scored)["prompt_logprobs"]
    assert entries[0] is None
    assert [int(next(iter(entry))) for entry in entries[1:]] == IDS[1:]
    assert served.post("/generate", prompt={"prompt_token_ids": "a"}).status_code == 400
    plain = served.ok("/generate", prompt="abc", max_tokens=2)
    assert "generated_only" in plain, "a plain prompt has this server's own answer"


def test_what_atropos_sends_to_sglang(served: Any) -> None:
    sampling = {k: v for k, v in HOT.items() if k not in ("max_tokens", "seed")}
    sampling |= {"max_new_tokens": 6, "n": 2, "sampling_seed": 5}
    body = {"input_ids": IDS, "sampling_params": sampling, "return_text_in_logprobs": False}
    answer = served.ok("/generate", return_logprob=True, **body)
    wanted = alone(served, "processed_logprobs", n=2, **HOT)
    for one, choice in zip(answer, wanted, strict=True):
        meta = one["meta_info"]
        triples = meta["output_token_logprobs"]
        assert [token for _, token, _ in triples] == one["output_ids"] == choice["token_ids"]
        assert [value for value, _, _ in triples] == token_logprobs(choice)
        assert {text for _, _, text in triples} == {None}
        assert meta["finish_reason"] == {"type": "length", "length": 6}
        assert (meta["weight_version"], meta["prompt_tokens"]) == ("0", len(IDS))
        assert one["text"] == choice["text"]


def test_sglangs_texts_prompts_and_stops(served: Any) -> None:
    greedy = {"temperature": 0, "max_new_tokens": 5, "regex": "[ab]{3}"}
    one = served.ok("/generate", text="abc", sampling_params=greedy, lora_path="policy", rid="r")
    assert one["meta_info"]["id"] == "r" and len(one["text"]) == 3
    assert one["meta_info"]["finish_reason"]["type"] == "stop"
    assert one["meta_info"]["weight_version"] == "1"
    texts = ["abcdef", "xyz"]
    body: dict[str, Any] = {"text": texts, "return_logprob": True, "logprob_start_len": 2}
    several = served.ok(
        "/generate",
        sampling_params={"max_new_tokens": 2, "temperature": 0},
        top_logprobs_num=3,
        return_text_in_logprobs=True,
        **body,
    )
    for answer, text in zip(several, texts, strict=True):
        meta = answer["meta_info"]
        assert "".join(token[2] for token in meta["input_token_logprobs"]) == text[2:]
        assert [len(top) for top in meta["output_top_logprobs"]] == [3, 3]
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"text": "a", "input_ids": [1]}, "input_ids"),
        ({"input_ids": [1], "stream": True}, "stream"),
        ({"input_ids": [1], "top_logprobs_num": 2}, "return_logprob"),
        (
            {"input_ids": [1], "sampling_params": {"max_new_tokens": 0}},
            "sampling_params.max_new_tokens",
        ),
        ({"input_ids": [99999]}, "input_ids"),
        (
            {"input_ids": [1], "sampling_params": {"stop_token_ids": [99999]}},
            "sampling_params.stop_token_ids",
        ),
        ({"input_ids": [1], "lora_path": "none"}, "lora_path"),
    ]
    for wrong, param in wrongs:
        answer = served.post("/generate", **wrong)
        assert answer.status_code == (404 if param == "lora_path" else 400), answer.text
        assert answer.json()["error"]["param"] == param


# TRL's VLLMClient

TRL = {
    "images": None,
    "n": 2,
    "repetition_penalty": 1.0,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.0,
    "max_tokens": 6,
    "logprobs": 0,
    "structured_outputs_regex": None,
    "generation_kwargs": {"seed": 5},
}


def test_what_trls_client_generates(served: Any) -> None:
    assert served.http.get("/health/").json()["status"] == "healthy"
    assert served.http.get("/get_world_size/").json() == {"world_size": 1}
    answer = served.ok("/generate/", prompts=[IDS, [7, 8]], **TRL)
    wanted = alone(served, "processed_logprobs", n=2, **HOT)
    assert answer["prompt_ids"] == [IDS, [7, 8]]
    assert answer["completion_ids"][:2] == [choice["token_ids"] for choice in wanted]
    for ids, values, choice in zip(
        answer["logprob_token_ids"], answer["logprobs"], wanted, strict=False
    ):
        assert [token for (token,) in ids] == choice["token_ids"]
        assert [value for (value,) in values] == token_logprobs(choice)
    best = served.ok("/generate/", prompts=["abc"], **TRL | {"logprobs": 3})
    for values in best["logprobs"][0]:
        assert values == sorted(values, reverse=True) and len(values) in (3, 4)
    messages = [[{"role": "user", "content": "hello"}]]
    chat = {k: v for k, v in TRL.items() if k != "images"}
    found = served.ok("/chat/", messages=messages, chat_template_kwargs={}, tools=None, **chat)
    asked = served.ok(
        "/v1/chat/completions", messages=messages[0], max_tokens=1, return_token_ids=True
    )
    assert found["prompt_ids"] == [asked["prompt_token_ids"]]
    assert served.http.post("/reset_prefix_cache/").status_code == 200
    assert served.http.post("/close_communicator/").status_code == 200


@pytest.mark.parametrize("response_format", ["json", "binary"])
def test_what_a_teacher_thinks(served: Any, response_format: str) -> None:
    body = {"sequences": [IDS, IDS[:7]], "prompt_lengths": [15, 5], "top_logprobs": 4}
    found = served.ok("/get_sequence_logprobs/", response_format=response_format, **body)
    echoed = served.ok(COMPLETIONS, prompt=IDS, echo=True, logprobs=4, max_tokens=0)
    wanted = echoed["choices"][0]["logprobs"]["token_logprobs"]
    if response_format == "binary":
        assert found["shape"] == [2, 5, 4] and found["completion_lengths"] == [5, 2]

        def array(name: str, kind: str, last: int) -> np.ndarray:
            data = base64.b64decode(found[name])
            return np.frombuffer(data, dtype=kind).reshape(2, 5, last)

        own = array("actual_logprobs_b64", "<f4", 1)[:, :, 0]
        ids = array("actual_token_ids_b64", "<i4", 1)[:, :, 0]
        assert own[0].tolist() == pytest.approx(wanted[15:], abs=1e-5)
        assert ids[0].tolist() == IDS[15:]
        assert own[1, :2].tolist() == pytest.approx(wanted[5:7], abs=1e-5)
        tops = array("logprobs_b64", "<f4", 4)[0]
        assert (np.diff(tops, axis=1) <= 0).all()
        assert array("token_ids_b64", "<i4", 4).shape == (2, 5, 4)
        return
    for values, ids, token, value in zip(
        found["logprobs"][0], found["logprob_token_ids"][0], IDS[15:], wanted[15:], strict=True
    ):
        assert values == sorted(values, reverse=True)
        assert values[ids.index(token)] == pytest.approx(value, abs=1e-5)


def test_what_needs_nccl_says_so(served: Any) -> None:
    named = {"name": "lm_head", "dtype": "torch.float32", "shape": [1]}
    for path in ("/init_communicator/", "/update_named_param/"):
        answer = served.post(path, **named)
        assert answer.status_code == 501
        assert "/v1/load_lora_adapter" in json.dumps(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/generate/", {"prompts": []}, "prompts"),
        ("/generate/", {"prompts": [[99999]]}, "prompts"),
        (
            "/generate/",
            {"prompts": ["a"], "generation_kwargs": {"foo": 1}},
            "generation_kwargs.foo",
        ),
        ("/generate/", {"prompts": ["a"], "images": [["x"]]}, "images.0"),
        ("/chat/", {"messages": [[{"role": "user"}]]}, "messages.0.0.content"),
        ("/chat/", {"messages": ["a"]}, "messages"),
        ("/get_sequence_logprobs/", {"sequences": [[1]], "prompt_lengths": []}, "prompt_lengths"),
        (
            "/get_sequence_logprobs/",
            {"sequences": [[1]], "prompt_lengths": [2]},
            "prompt_lengths.0",
        ),
        (
            "/get_sequence_logprobs/",
            {"sequences": [[1]], "prompt_lengths": [0], "top_logprobs": 100},
            "top_logprobs",
        ),
        (
            "/get_sequence_logprobs/",
            {"sequences": [[1]], "prompt_lengths": [0], "temperature": 0.5},
            "temperature",
        ),
    ],
)
def test_wrong_input_of_trl(served: Any, path: str, body: dict[str, Any], param: str) -> None:
    answer = served.post(path, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
