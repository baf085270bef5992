"""POST /v1/completions: shapes, and what is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_parallm.server.schemas.completions import CompletionResponse

PATH = "/v1/completions"


def test_answers_with_the_documented_shape(server: Any) -> None:
    answer = server.ok(PATH, model="parrot", prompt="hello", max_tokens=100)
    CompletionResponse.model_validate(answer, strict=True)
    choice = answer["choices"][0]
    assert choice["text"] == "hello"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    # The end token is a generated token.
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_sixteen_tokens_by_default_and_fewer_at_the_end_of_the_context(server: Any) -> None:
    assert server.ok(PATH, prompt="x" * 99)["usage"]["completion_tokens"] == 16
    answer = server.ok(PATH, prompt="x" * 510)
    assert answer["usage"]["completion_tokens"] == 2
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c", "ab"], ["ab", "c", "ab"]),
        ([100, 101], ["ab"]),
        ([[100, 101], [102]], ["ab", "c"]),
    ],
)
def test_every_shape_of_prompt(server: Any, prompt: Any, texts: list[str]) -> None:
    choices = server.ok(PATH, prompt=prompt)["choices"]
    assert [choice["text"] for choice in choices] == texts
    assert [choice["index"] for choice in choices] == list(range(len(texts)))


def test_n_answers_for_each_prompt_in_order(server: Any) -> None:
    answer = server.ok(PATH, prompt=["ab", "c"], n=3)
    assert [choice["text"] for choice in answer["choices"]] == ["ab"] * 3 + ["c"] * 3
    # Each prompt is counted once, every answer's tokens are.
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 3 * 3 + 3 * 2
    sequences = server.engine.submitted[-6:]
    assert len({sequence.group for sequence in sequences}) == 2
    assert None not in {sequence.group for sequence in sequences}


def test_a_seed_counts_up_over_the_answers(server: Any) -> None:
    server.ok(PATH, prompt="ab", n=3, seed=-1)
    seeds = [sequence.params.seed for sequence in server.engine.submitted[-3:]]
    assert seeds == [2**64 - 1, 0, 1]


def test_best_of_returns_the_likeliest(server: Any) -> None:
    # Seeds 5..9: scores -0.6 -0.7 -0.1 -0.2 -0.3.
    answer = server.ok(PATH, prompt="ab", n=2, best_of=5, seed=5, logprobs=0)
    scores = [choice["logprobs"]["token_logprobs"][0] for choice in answer["choices"]]
    assert scores == [-0.1, -0.2]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 5 * 3
    without = server.ok(PATH, prompt="ab", best_of=5)
    assert len(without["choices"]) == 1
    assert without["choices"][0]["logprobs"] is None


def test_logprobs_of_the_generated_tokens(server: Any) -> None:
    logprobs = server.ok(PATH, prompt="ab", logprobs=2)["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "b", "<|end|>"],
        "token_logprobs": [-0.1, -0.1, -0.1],
        "top_logprobs": [
            {"a": -0.1, "b": -1.1},
            {"b": -0.1, "c": -1.1},
            {"<|end|>": -0.1, "<|user|>": -1.1},
        ],
        "text_offset": [0, 1, 2],
    }


def test_logprobs_zero_gives_the_token_alone(server: Any) -> None:
    logprobs = server.ok(PATH, prompt="a", logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] == [{"a": -0.1}]


def test_what_lm_eval_needs(server: Any) -> None:
    """Every prompt token and exactly one generated token, even where that token is EOS."""
    answer = server.ok(
        PATH,
        model="parrot",
        prompt=[[100, 101, 102], [0]],
        temperature=0,
        max_tokens=1,
        logprobs=1,
        seed=1234,
        echo=True,
    )
    first, second = answer["choices"]
    assert first["text"] == "abca"
    assert first["logprobs"]["tokens"] == ["a", "b", "c", "a"]
    assert first["logprobs"]["token_logprobs"][0] is None
    assert all(isinstance(value, float) for value in first["logprobs"]["token_logprobs"][1:])
    assert first["logprobs"]["top_logprobs"][0] is None
    assert first["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert second["logprobs"]["tokens"] == ["<|end|>", "<|end|>"]
    assert second["text"] == ""


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_zero_scores_the_prompt(server: Any, stream: bool) -> None:
    request = {"prompt": "ab", "max_tokens": 0, "echo": True, "logprobs": 1}
    if stream:
        choices = [event["choices"][0] for event in server.events(PATH, **request)]
        assert "".join(choice["text"] for choice in choices) == "ab"
        assert choices[0]["logprobs"]["tokens"] == ["a", "b"]
        assert choices[-1]["finish_reason"] == "length"
    else:
        answer = server.ok(PATH, **request)
        assert answer["choices"][0]["text"] == "ab"
        assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
        assert answer["usage"]["completion_tokens"] == 0


def test_prompt_logprobs_have_vllms_shape(server: Any) -> None:
    answer = server.ok(PATH, prompt="ab", prompt_logprobs=1)
    CompletionResponse.model_validate(answer, strict=True)
    assert answer["choices"][0]["prompt_logprobs"] == [
        None,
        {"101": {"logprob": -0.1, "rank": 1, "decoded_token": "b"}},
    ]
    only_token = server.ok(PATH, prompt="ab", prompt_logprobs=0)["choices"][0]["prompt_logprobs"]
    assert only_token[1]["101"]["rank"] is None


def test_tokens_as_token_ids(server: Any) -> None:
    choice = server.ok(PATH, prompt="a", logprobs=1, return_tokens_as_token_ids=True)["choices"][0]
    assert choice["logprobs"]["tokens"] == ["token_id:100", "token_id:0"]
    assert choice["logprobs"]["top_logprobs"][0] == {"token_id:100": -0.1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "text", "reason", "stop_reason"),
    [
        ({"stop": "lo"}, "hel", "stop", "lo"),
        ({"stop": ["xyz", "ll"]}, "he", "stop", "ll"),
        ({"stop": "lo", "include_stop_str_in_output": True}, "hello", "stop", "lo"),
        ({"stop": "lox"}, "hello", "stop", None),
        ({"stop_token_ids": [111]}, "he", "stop", 111),
        ({"max_tokens": 3, "stop": "lo"}, "hel", "length", None),
        ({"stop": []}, "hello", "stop", None),
    ],
)
def test_stops(
    server: Any, stream: bool, options: dict[str, Any], text: str, reason: str, stop_reason: Any
) -> None:
    if stream:
        choices = [event["choices"][0] for event in server.events(PATH, prompt="hello", **options)]
    else:
        choices = server.ok(PATH, prompt="hello", **options)["choices"]
    assert "".join(choice["text"] for choice in choices) == text
    assert choices[-1]["finish_reason"] == reason
    assert choices[-1]["stop_reason"] == stop_reason


def test_a_stop_string_frees_the_row_at_once(server: Any, helpers: Any) -> None:
    with server.engine.held(steps=10):
        server.ok(PATH, prompt="ab", stop="ba", ignore_eos=True, max_tokens=500)
        helpers.wait_until(lambda: not server.engine.live)
    assert server.engine.submitted[-1].id in server.engine.aborted


def test_streaming_with_everything(server: Any) -> None:
    request = {
        "prompt": ["héllo", "xy"],
        "n": 2,
        "echo": True,
        "logprobs": 1,
        "stop": "lo",
        "max_tokens": 50,
    }
    whole = server.ok(PATH, **request)
    events = server.events(PATH, stream_options={"include_usage": True}, **request)
    usage = events.pop()
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events)
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in events if e["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [p["finish_reason"] for p in mine] == [None] * (len(mine) - 1) + ["stop"]
        for name, values in choice["logprobs"].items():
            pieces = [piece["logprobs"][name] for piece in mine if piece["logprobs"]]
            assert [v for piece in pieces for v in piece] == values, name


def test_usage_in_every_event(server: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = server.events(PATH, prompt="abc", stream_options=options)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == 4


def test_no_usage_unless_asked(server: Any) -> None:
    assert all("usage" not in event for event in server.events(PATH, prompt="abc"))


def test_characters_of_several_tokens_come_whole(server: Any) -> None:
    text = "añ€😀z"
    events = server.events(PATH, prompt=text, max_tokens=50)
    pieces = [event["choices"][0]["text"] for event in events]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_null_is_the_default(server: Any) -> None:
    names = ["max_tokens", "temperature", "top_p", "n", "stream", "logprobs", "echo", "stop"]
    names += ["presence_penalty", "frequency_penalty", "best_of", "logit_bias", "user", "seed"]
    names += ["suffix", "stream_options", "model", "min_p", "top_k"]
    answer = server.ok(PATH, prompt="hello", **dict.fromkeys(names))
    assert answer["choices"][0]["text"] == "hello"


def test_whole_numbers_with_a_point(server: Any) -> None:
    body = b'{"prompt": "hello", "max_tokens": 2.0, "n": 1e0}'
    headers = {"content-type": "application/json"}
    answer = server.http.post(PATH, content=body, headers=headers).json()
    assert answer["choices"][0]["text"] == "he"


def test_sampling_fields_get_to_the_engine(server: Any) -> None:
    server.ok(
        PATH,
        prompt="ab",
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=1,
        frequency_penalty=-1,
        logit_bias={"5": -100, "7": 2.5},
        min_tokens=2,
        ignore_eos=True,
        max_tokens=5,
        stop_token_ids=[9],
        priority=-3,
    )
    sequence = server.engine.submitted[-1]
    params = sequence.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 7, 0.1)
    assert params.repetition_penalty == 1.5
    assert (params.presence_penalty, params.frequency_penalty) == (1, -1)
    assert dict(params.logit_bias) == {5: -100.0, 7: 2.5}
    assert (params.min_tokens, params.ignore_eos, params.max_tokens) == (2, True, 5)
    assert params.stop_token_ids == frozenset({9})
    assert sequence.priority == -3


def test_edges_of_sampling_become_what_the_engine_can_do(server: Any) -> None:
    server.ok(PATH, prompt="ab", temperature=1e-9, top_p=0, top_k=-1)
    params = server.engine.submitted[-1].params
    assert params.is_greedy
    assert 0 < params.top_p < 1e-6
    assert params.top_k == 0


def test_truncation_keeps_the_end(server: Any) -> None:
    answer = server.ok(PATH, prompt="x" * 1000 + "ab", truncate_prompt_tokens=2, echo=True)
    assert answer["choices"][0]["text"] == "abab"
    answer = server.ok(PATH, prompt="x" * 1000, truncate_prompt_tokens=-1)
    assert answer["usage"]["prompt_tokens"] == 511


def test_special_tokens_in_a_text(server: Any) -> None:
    answer = server.ok(PATH, prompt="no<|user|>ab", echo=True)
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["choices"][0]["text"] == "no<|user|>abab"
    shown = server.ok(PATH, prompt=[1, 100], echo=True, skip_special_tokens=False)
    assert shown["choices"][0]["text"] == "<|user|>aa"


def test_many_logprobs(server: Any) -> None:
    """Enough of them that the answer is written beside the event loop."""
    answer = server.ok(PATH, prompt=["x" * 200] * 4, echo=True, logprobs=1, max_tokens=3)
    lengths = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert lengths == [203] * 4
    offsets = answer["choices"][0]["logprobs"]["text_offset"]
    assert offsets == list(range(203))


def test_impossible_tokens_are_numbers_in_json() -> None:
    from mlx_parallm.server.output.logprobs import finite

    assert [finite(value) for value in (-1.5, float("-inf"), float("nan"))] == [
        -1.5,
        -9999.0,
        -9999.0,
    ]
    json.dumps(finite(float("-inf")), allow_nan=False)
