"""llama.cpp's own routes, by the fields that its server's README documents."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

# What a streamed event has, and what the last one adds.
PIECE = {"index", "content", "tokens", "stop", "id_slot", "tokens_predicted", "tokens_evaluated"}
FINAL = PIECE | {
    "model", "generation_settings", "prompt", "has_new_line", "truncated", "stop_type",
    "stopping_word", "tokens_cached", "timings",
}  # fmt: skip
END = 0


def ids(text: str) -> list[int]:
    """The parrot's tokens: one a byte."""
    return [byte + 3 for byte in text.encode()]


def events(server: Any, helpers: Any, **body: Any) -> list[dict[str, Any]]:
    """A stream's events; llama.cpp's own stream has no [DONE]."""
    response = server.post("/completion", **body, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    found: list[dict[str, Any]] = helpers.parse_events(response.text, done=False)
    return found


def refused(server: Any, path: str, status: int = 400, **body: Any) -> str:
    """The message of a refusal in llama.cpp's shape."""
    response = server.post(path, **body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"code", "message", "type"}
    assert error["code"] == status
    return str(error["message"])


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_completion(server: Any, path: str) -> None:
    answer = server.ok(path, prompt="Grüezi\n!", n_predict=64)
    assert set(answer) == FINAL
    assert (answer["content"], answer["stop"], answer["model"]) == ("Grüezi\n!", True, "parrot")
    assert (answer["stop_type"], answer["stopping_word"], answer["tokens"]) == ("eos", "", [])
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (9, 10)
    assert (answer["prompt"], answer["has_new_line"]) == ("Grüezi\n!", True)
    assert answer["tokens_cached"] == 2
    timings = answer["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (2, 7, 10)
    assert timings["prompt_ms"] > 0
    per_second = timings["predicted_n"] / timings["predicted_ms"] * 1e3
    assert timings["predicted_per_second"] == pytest.approx(per_second)
    assert answer["generation_settings"]["n_predict"] == 64
    assert answer["generation_settings"]["top_k"] == 40


def test_why_it_stopped(server: Any) -> None:
    word = server.ok("/completion", prompt="one two", stop=["tw"])
    assert (word["content"], word["stop_type"], word["stopping_word"]) == ("one ", "word", "tw")
    limit = server.ok("/completion", prompt="one two", n_predict=3, return_tokens=True)
    assert (limit["content"], limit["stop_type"]) == ("one", "limit")
    assert limit["tokens"] == ids("one")
    assert server.ok("/completion", prompt="x", n_predict=0)["tokens_predicted"] == 0


def test_a_stream_is_the_whole_answer(server: Any, helpers: Any) -> None:
    *pieces, last = events(server, helpers, prompt="Grüezi", n_predict=20)
    assert all(set(piece) == PIECE and not piece["stop"] for piece in pieces)
    assert "".join(piece["content"] for piece in pieces) == "Grüezi"
    assert [token for piece in pieces for token in piece["tokens"]] == [*ids("Grüezi"), END]
    assert set(last) == FINAL
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "eos")


def test_prompts_of_every_shape(server: Any, helpers: Any) -> None:
    shapes: list[Any] = ["ab", ids("ab"), [ids("a")[0], "b"], {"prompt_string": "ab"}]
    for shape in shapes:
        answer = server.ok("/completion", prompt=shape)
        assert (answer["content"], answer["prompt"]) == ("ab", "ab")
    several = server.ok("/completion", prompt=shapes)
    assert [answer["content"] for answer in several] == ["ab"] * 4
    assert [answer["index"] for answer in several] == [0, 1, 2, 3]
    twice = server.ok("/completion", prompt="ab", n_cmpl=2)
    assert [answer["content"] for answer in twice] == ["ab", "ab"]
    streamed = events(server, helpers, prompt=["x", "yy"])
    for index, text in enumerate(("x", "yy")):
        own = [event for event in streamed if event["index"] == index]
        assert "".join(event["content"] for event in own) == text
        assert [event["stop"] for event in own] == [False] * (len(own) - 1) + [True]


def test_settings_reach_the_sampler(server: Any) -> None:
    server.ok(
        "/completion", prompt="x", temperature=0.5, top_k=7, top_p=0.6, min_p=0.1, seed=9,
        repeat_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.4, n_predict=5,
        ignore_eos=True, logit_bias=[[5, 1.5], ["ab", -2], [9, False]], cache_prompt=True,
        id_slot=-1, n_keep=0, dry_base=1.5,
    )  # fmt: skip
    params = server.engine.submitted[-1].params
    found = (params.max_tokens, params.temperature, params.top_k, params.top_p, params.min_p)
    assert found == (5, 0.5, 7, 0.6, 0.1)
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    assert (params.seed, *penalties, params.ignore_eos) == (9, 1.2, 0.3, 0.4, True)
    assert params.logit_bias == {5: 1.5, ids("a")[0]: -2, ids("b")[0]: -2, 9: -100}
    server.ok("/completion", prompt="x", repeat_penalty=1.2, repeat_last_n=0)
    params = server.engine.submitted[-1].params
    assert params.repetition_penalty == 1


def test_defaults_are_llama_cpps(server: Any, helpers: Any) -> None:
    server.ok("/completion", prompt="x")
    params = server.engine.submitted[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (0.8, 40, 0.95, 0.05)
    assert (params.seed, params.max_tokens) == (None, helpers.CONTEXT - 1)


def test_probabilities(server: Any, helpers: Any) -> None:
    whole = server.ok("/completion", prompt="ab", n_probs=2)["completion_probabilities"]
    assert [(one["id"], one["token"]) for one in whole[:2]] == [
        (ids("a")[0], "a"),
        (ids("b")[0], "b"),
    ]
    assert [other["id"] for other in whole[0]["top_logprobs"]] == [ids("a")[0], ids("a")[0] + 1]
    streamed = events(server, helpers, prompt="ab", n_probs=2)
    assert whole == [p for event in streamed for p in event.get("completion_probabilities", ())]


def test_response_fields(server: Any) -> None:
    fields = ["content", "generation_settings/n_predict", "missing"]
    answer = server.ok("/completion", prompt="ab", n_predict=9, response_fields=fields)
    assert answer == {"content": "ab", "n_predict": 9}


def test_tokenize_by_the_requests_shape(server: Any) -> None:
    assert server.ok("/tokenize", content="ab") == {"tokens": ids("ab")}
    pieces = server.ok("/tokenize", content="á!", with_pieces=True)["tokens"]
    assert [one["piece"] for one in pieces] == [[0xC3], [0xA1], "!"]
    assert [one["id"] for one in pieces] == ids("á!")
    assert server.ok("/tokenize", prompt="ab")["count"] == 2
    assert server.ok("/detokenize", tokens=ids("á!"))["content"] == "á!"
    assert server.post("/tokenize", content=1).json()["error"]["param"] == "content"
    assert server.post("/tokenize", content="a", prompt="a").status_code == 400
    assert server.post("/tokenize", content="a", parse_special=False).status_code == 400


def test_the_servers_template_variables_reach_tokenize(serve: Any) -> None:
    own = serve(chat_template_kwargs={"suffix": "zz"})
    messages = [{"role": "user", "content": "a"}]
    assert own.ok("/tokenize", messages=messages)["tokens"][-2:] == ids("zz")
    assert own.ok("/apply-template", messages=messages)["prompt"].endswith("zz")


def test_apply_template_makes_what_chat_sends(server: Any) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    prompt = server.ok("/apply-template", messages=messages)["prompt"]
    assert prompt == "<|user|>s<|user|>hi<|assistant|>"
    answer = server.ok("/completion", prompt=prompt)
    server.ok("/v1/chat/completions", messages=messages)
    assert answer["tokens_evaluated"] == len(server.engine.submitted[-1].prompt)
    assert "messages" in refused(server, "/apply-template", messages=[])


def test_props(server: Any, helpers: Any) -> None:
    props = server.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == helpers.CONTEXT
    assert props["default_generation_settings"]["params"]["temperature"] == 0.8
    assert (props["model_alias"], props["eos_token"]) == ("parrot", "<|end|>")
    assert "add_generation_prompt" in props["chat_template"]
    assert len(server.http.get("/slots").json()) == props["total_slots"]


def test_slots_tell_how_many_are_busy(serve: Any, helpers: Any) -> None:
    server = serve()
    with ThreadPoolExecutor(1) as pool, server.engine.held():
        pool.submit(server.post, "/completion", prompt="long")
        helpers.wait_until(lambda: len(server.engine.live) == 1)
        busy = [slot["is_processing"] for slot in server.http.get("/slots").json()]
    assert busy == [True] + [False] * (len(busy) - 1)


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("json_schema", {"json_schema": {"not": {}}}),
        ("grammar", {"grammar": "root ::= ("}),
        ("samplers", {"samplers": ["top_k"]}),
        ("mirostat", {"mirostat": 2}),
        ("dry_multiplier", {"dry_multiplier": 0.8}),
        ("xtc_probability", {"xtc_probability": 0.5}),
        ("typical_p", {"typical_p": 0.9}),
        ("dynatemp_range", {"dynatemp_range": 0.2}),
        ("repeat_last_n", {"repeat_penalty": 1.1, "repeat_last_n": 64}),
        ("lora", {"lora": [{"id": 0, "scale": 1}]}),
        ("post_sampling_probs", {"post_sampling_probs": True}),
        ("multimodal_data", {"prompt": {"prompt_string": "x", "multimodal_data": ["aGk="]}}),
        ("n_predict", {"n_predict": -3}),
        ("temperature", {"temperature": "hot"}),
        ("logit_bias", {"logit_bias": [[1]]}),
        ("out of range", {"prompt": [99999]}),
        ("colour", {"colour": 1}),
    ],
)
def test_what_cannot_be_honoured_is_named(server: Any, named: str, fields: Any) -> None:
    assert named in refused(server, "/completion", **{"prompt": "x", **fields})


def test_errors_are_llama_cpps(server: Any, serve: Any) -> None:
    assert "does not exist" in refused(server, "/completion", 404, prompt="x", model="nope")
    assert "fill-in-the-middle" in refused(server, "/infill", input_prefix="a", input_suffix="b")
    assert "maximum context" in refused(server, "/completion", prompt="x" * 600)
    locked = serve(api_key=("secret",))
    assert "API key" in refused(locked, "/completion", 401, prompt="x")


def test_an_error_in_a_stream(server: Any, helpers: Any) -> None:
    body = {"prompt": "long " * 40, "stream": True}
    with (
        server.engine.held(steps=3),
        server.http.stream("POST", "/completion", json=body) as response,
    ):
        received = response.iter_lines()
        next(received)
        live = max(server.engine.live.values(), key=lambda live: live.sequence.id)
        live.answer = ids(helpers.CURSE)
        server.engine.go_on()
        last = [line for line in received if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 500
