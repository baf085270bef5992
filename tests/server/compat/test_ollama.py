"""Ollama's API, with Ollama's own Python client, LangChain's, and what Open WebUI sends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import ollama
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2]}}</tool_call>'
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SAYS: Any = [{"role": "user", "content": "Grüezi!"}]
FIGURES = ("total_duration", "prompt_eval_duration", "eval_duration")


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[ollama.Client]:
    """Ollama's client at the parrot."""
    with ollama.Client(host=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def real(llama_factory: Callable[..., LoadedModel], helpers: Any) -> Iterator[Any]:
    """A server on a real engine with a tiny model."""
    engine = Engine(llama_factory, EngineConfig())
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.fixture(scope="module")
def real_client(real: Any) -> Iterator[ollama.Client]:
    """Ollama's client at the tiny model."""
    with ollama.Client(host=real.url) as client:
        yield client


def lines(server: Any, path: str, **body: Any) -> list[dict[str, Any]]:
    """A stream's objects."""
    with server.http.stream("POST", path, json=body) as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in response.iter_lines()]


def refused(server: Any, path: str, status: int = 400, **body: Any) -> str:
    """The message of a refusal in Ollama's shape."""
    response = server.post(path, **body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


# Ollama's client


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(model="parrot", messages=SAYS)
    assert answer.message.role == "assistant"
    assert answer.message.content == "Grüezi!"
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "parrot")
    assert (answer.prompt_eval_count, answer.eval_count) == (10, 9)
    assert all(answer[name] > 0 for name in FIGURES)
    assert answer.load_duration == 0
    assert answer.created_at is not None and answer.created_at.endswith("Z")


def test_a_streamed_chat_is_the_whole_one(client: ollama.Client) -> None:
    parts = list(client.chat(model="parrot:latest", messages=SAYS, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Grüezi!"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) > 3
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 9)
    assert parts[-1].model == "parrot:latest"


def test_many_at_once(server: Any) -> None:
    async def one(client: ollama.AsyncClient, place: int) -> str:
        messages = [{"role": "user", "content": f"say {place}"}]
        if place % 2:
            return (await client.chat(model="parrot", messages=messages)).message.content or ""
        stream = await client.chat(model="parrot", messages=messages, stream=True)
        return "".join([part.message.content or "" async for part in stream])

    async def all_of_them() -> list[str]:
        async with ollama.AsyncClient(host=server.url) as client:
            return await asyncio.gather(*(one(client, place) for place in range(20)))

    assert asyncio.run(all_of_them()) == [f"say {place}" for place in range(20)]


def test_tools_and_the_turn_after(client: ollama.Client, server: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": f"first {CALL}"}]
    answer = client.chat(model="parrot", messages=messages, tools=TOOLS)
    assert answer.message.content == "first"
    (call,) = answer.message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("add", {"a": 1, "b": [2]})
    assert answer.done_reason == "stop"
    messages += [answer.message, {"role": "tool", "tool_name": "add", "content": "3"}]
    client.chat(model="parrot", messages=messages, tools=TOOLS)
    prompt = bytes(i - 3 for i in server.engine.submitted[-1].prompt if i > 2).decode()
    assert prompt.startswith("[add ]first <tool_call>")
    assert '"arguments": {"a": 1, "b": [2]}' in prompt
    assert prompt.endswith("3")


def test_streamed_tool_calls(server: Any) -> None:
    messages = [{"role": "user", "content": CALL * 2}]
    parts = lines(server, "/api/chat", model="parrot", messages=messages, tools=TOOLS)
    calls = [call for part in parts for call in part["message"].get("tool_calls", ())]
    assert [call["function"]["index"] for call in calls] == [0, 1]
    assert all(call["function"]["arguments"] == {"a": 1, "b": [2]} for call in calls)
    assert parts[-1]["done_reason"] == "stop"


def test_generate(client: ollama.Client, server: Any) -> None:
    answer = client.generate(model="parrot", prompt="Hoi", system="be brief")
    assert (answer.response, answer.done_reason) == ("Hoi", "stop")
    prompt = server.engine.submitted[-1].prompt
    assert answer.context == [*prompt, *server.engine.submitted[-1].prompt[-4:-1], 0]
    parts = list(client.generate(model="parrot", prompt="Hoi", stream=True))
    assert "".join(part.response or "" for part in parts) == "Hoi"
    raw = client.generate(model="parrot", prompt="as it is", raw=True)
    assert (raw.response, raw.context) == ("as it is", None)
    assert raw.prompt_eval_count == len("as it is")


def test_context_goes_on_from_an_earlier_answer(client: ollama.Client, server: Any) -> None:
    first = client.generate(model="parrot", prompt="one")
    client.generate(model="parrot", prompt="two", context=first.context)
    prompt = server.engine.submitted[-1].prompt
    assert prompt[: len(first.context or ())] == first.context
    assert bytes(i - 3 for i in prompt if i > 2) == b"oneonetwo"


def test_options_reach_the_sampler(client: ollama.Client, server: Any) -> None:
    options = {
        "num_predict": 3, "temperature": 0.5, "top_k": 7, "top_p": 0.6, "min_p": 0.1, "seed": 9,
        "stop": ["x"], "repeat_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4,
        "num_thread": 4, "num_ctx": 100,
    }  # fmt: skip
    answer = client.chat(model="parrot", messages=SAYS, options=options)
    assert (answer.done_reason, answer.eval_count) == ("length", 3)
    params = server.engine.submitted[-1].params
    found = (params.max_tokens, params.temperature, params.top_k, params.top_p, params.min_p)
    assert found == (3, 0.5, 7, 0.6, 0.1)
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    assert (params.seed, *penalties) == (9, 1.2, 0.3, 0.4)
    stopped = client.chat(model="parrot", messages=SAYS, options={"stop": ["z"]})
    assert stopped.message.content == "Grüe"


def test_defaults_are_ollamas(client: ollama.Client, server: Any, helpers: Any) -> None:
    client.chat(model="parrot", messages=SAYS)
    params = server.engine.submitted[-1].params
    assert (params.temperature, params.top_k, params.top_p, params.seed) == (0.8, 40, 0.9, None)
    assert params.max_tokens == helpers.CONTEXT - 10


def test_num_ctx_bounds_prompt_and_answer(server: Any) -> None:
    body = {"model": "parrot", "messages": SAYS, "stream": False}
    answer = server.ok("/api/chat", **body, options={"num_ctx": 14})
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 4)
    assert "num_ctx is 4096" in refused(server, "/api/chat", **body, options={"num_ctx": 4096})
    assert "maximum context" in refused(server, "/api/chat", **body, options={"num_ctx": 5})


def test_logprobs(server: Any) -> None:
    body = {"model": "parrot", "messages": SAYS, "logprobs": True, "top_logprobs": 2}
    whole = server.ok("/api/chat", **body, stream=False)["logprobs"]
    parts = lines(server, "/api/chat", **body)
    streamed = [entry for part in parts for entry in part.get("logprobs", ())]
    assert whole == streamed
    assert len(whole) == 9
    assert (whole[0]["token"], len(whole[0]["top_logprobs"])) == ("G", 2)


def test_models(client: ollama.Client, real_client: ollama.Client, real: Any) -> None:
    names = [model.model for model in client.list().models]
    assert names == ["parrot:latest", "org/parrot-2:latest"]
    assert client.ps().models[0].model == "parrot:latest"
    loaded = real.engine.loaded
    shown = real_client.show("tiny:latest")
    assert shown.capabilities is not None and "completion" in shown.capabilities
    assert shown.modelinfo is not None and shown.details is not None
    assert shown.modelinfo["general.architecture"] == shown.details.family == "llama"
    assert shown.modelinfo["llama.context_length"] == loaded.max_model_len
    assert shown.modelinfo["general.parameter_count"] == loaded.num_parameters
    running = real_client.ps().models[0]
    assert (running.context_length, running.size) == (loaded.max_model_len, loaded.nbytes)


def test_embed_is_openais_embedding(real: Any, real_client: ollama.Client) -> None:
    client = real_client
    texts = ["one", "and two"]
    found = client.embed(model="tiny", input=texts)
    ours = real.ok("/v1/embeddings", input=texts)["data"]
    for vector, other in zip(found.embeddings, ours, strict=True):
        np.testing.assert_allclose(vector, other["embedding"], rtol=1e-5, atol=1e-6)
    assert (
        found.prompt_eval_count == real.ok("/v1/embeddings", input=texts)["usage"]["prompt_tokens"]
    )
    one = client.embed(model="tiny", input="one", dimensions=4).embeddings[0]
    assert len(one) == 4
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    older = client.embeddings(model="tiny", prompt="one").embedding
    direction = np.array(older) / np.linalg.norm(older)
    np.testing.assert_allclose(direction, found.embeddings[0], rtol=1e-5, atol=1e-6)
    assert client.embed(model="tiny", input="").embeddings == []


def test_embed_cuts_what_is_too_long(real: Any) -> None:
    limit = real.engine.loaded.max_model_len
    text = "ab" * limit
    answer = real.ok("/api/embed", model="tiny", input=text)
    assert answer["prompt_eval_count"] == limit
    assert "maximum context" in refused(
        real, "/api/embed", model="tiny", input=text, truncate=False
    )
    assert "dimensions" in refused(real, "/api/embed", model="tiny", input="a", dimensions=10**6)


def test_errors_are_ollamas(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as missing:
        client.chat(model="nope", messages=SAYS)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options\.temperature"):
        client.chat(model="parrot", messages=SAYS, options={"temperature": 9})
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.generate(model="nope:7b", prompt="x", stream=True))


def test_an_error_in_a_stream(client: ollama.Client, server: Any, helpers: Any) -> None:
    messages = [{"role": "user", "content": "long " * 40}]
    with server.engine.held(steps=3):
        stream = iter(client.chat(model="parrot", messages=messages, stream=True))
        next(stream)
        live = max(server.engine.live.values(), key=lambda live: live.sequence.id)
        live.answer = [byte + 3 for byte in helpers.CURSE.encode()]
    with pytest.raises(ollama.ResponseError, match="failed"):
        list(stream)


def test_a_client_that_leaves_frees_its_row(server: Any, helpers: Any) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "long " * 50}]}
    with httpx.stream("POST", server.url + "/api/chat", json=body, timeout=PATIENCE_S) as response:
        next(response.iter_lines())
    helpers.wait_until(lambda: not server.engine.live)


@pytest.mark.parametrize(
    ("named", "fields"),
    [
        ("format", {"format": {"not": {}}}),
        ("think", {"think": True}),
        ("think", {"think": "high"}),
        ("think", {"think": "loudly"}),
        ("images", {"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}),
        ("options.mirostat", {"options": {"mirostat": 2}}),
        ("options.typical_p", {"options": {"typical_p": 0.5}}),
        ("repeat_last_n", {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}),
        ("options.temprature", {"options": {"temprature": 1}}),
        ("truncate", {"truncate": True}),
        ("shift", {"shift": True}),
        ("messages.0.role", {"messages": [{"role": "wizard", "content": ""}]}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("colour", {"colour": 1}),
    ],
)
def test_what_cannot_be_honoured_is_named(server: Any, named: str, fields: dict[str, Any]) -> None:
    body = {"model": "parrot", "messages": SAYS, **fields}
    assert named in refused(server, "/api/chat", **body)


@pytest.mark.parametrize("field", ["suffix", "template", "images"])
def test_what_generate_cannot_honour(server: Any, field: str) -> None:
    body: dict[str, Any] = {"model": "parrot", "prompt": "x"}
    value: Any = ["aGk="] if field == "images" else "y"
    assert field in refused(server, "/api/generate", **{**body, field: value})
    empty: Any = [] if field == "images" else ""
    server.ok("/api/generate", **{**body, field: empty}, stream=False)


def test_penalties_are_off_at_no_last_tokens(server: Any) -> None:
    options = {"repeat_penalty": 1.3, "presence_penalty": 1, "repeat_last_n": 0}
    server.ok("/api/chat", model="parrot", messages=SAYS, options=options, stream=False)
    params = server.engine.submitted[-1].params
    assert (params.repetition_penalty, params.presence_penalty) == (1, 0)


def test_asking_only_for_the_model(server: Any) -> None:
    answer = server.ok("/api/chat", model="parrot", messages=[], keep_alive="5m")
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert server.ok("/api/generate", model="parrot", keep_alive=-1)["response"] == ""
    assert "keep_alive" not in answer
    assert "unloaded" in refused(server, "/api/generate", model="parrot", keep_alive=0)


def test_routes_and_keys_fail_in_ollamas_shape(server: Any, serve: Any) -> None:
    assert "Unknown route" in refused(server, "/api/pull", 404, model="x")
    assert server.http.get("/api/chat").json()["error"]
    assert (
        "JSON"
        in server.http.post(
            "/api/chat", content=b"{", headers={"content-type": "application/json"}
        ).json()["error"]
    )
    locked = serve(api_key=("secret",))
    assert "API key" in refused(locked, "/api/chat", 401, messages=SAYS)
    headers = {"Authorization": "Bearer secret"}
    with ollama.Client(host=locked.url, headers=headers) as with_key:
        assert with_key.chat(model="parrot", messages=SAYS).message.content == "Grüezi!"


# Open WebUI


def test_open_webui_with_an_ollama_address(server: Any) -> None:
    """Its calls in its order, as routers/ollama.py and utils/payload.py make them."""
    assert server.http.get("/api/version").json()["version"]
    models = server.http.get("/api/tags").json()["models"]
    loaded = server.http.get("/api/ps").json()["models"]
    assert {entry["name"] for entry in loaded} <= {entry["name"] for entry in models}
    # It writes ":latest" behind a model without a tag and looks for that in the list.
    assert "parrot:latest" in [entry["model"] for entry in models]
    options = {
        "temperature": 0.7, "num_ctx": 200, "num_predict": 50, "top_k": 40, "seed": 1,
        "num_gpu": 1, "num_thread": 2, "use_mmap": True, "use_mlock": False, "num_keep": 24,
        "num_batch": 256, "repeat_last_n": 64, "mirostat": 0, "mirostat_tau": 5.0,
    }  # fmt: skip
    chat = {"model": "parrot:latest", "messages": SAYS, "options": options, "stream": True}
    parts = lines(server, "/api/chat", **chat, keep_alive="5m", think=False)
    assert "".join(part["message"]["content"] for part in parts) == "Grüezi!"
    title = {
        "model": "parrot:latest",
        "messages": [{"role": "user", "content": "### Task:\nGenerate a title"}],
        "stream": False,
        "options": {"num_predict": 100},
    }
    assert server.ok("/api/chat", **title)["message"]["content"].startswith("### Task")
    # Its OpenAI-shaped calls go to an Ollama address too, with the tag.
    answer = server.ok("/v1/chat/completions", model="parrot:latest", messages=SAYS)
    assert answer["choices"][0]["message"]["content"] == "Grüezi!"


def test_open_webui_with_an_openai_address(server: Any) -> None:
    """Its calls as version 0.12.4 makes them."""
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "parrot"
    clock = {"name": "get_current_timestamp", "parameters": {"properties": {}, "type": "object"}}
    tools = [{"type": "function", "function": clock | {"description": "The time in seconds."}}]
    sliders = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "max_tokens": 20, "seed": 3,
        "frequency_penalty": 0.1, "presence_penalty": 0.1,
        "stop": ["xyz"], "logit_bias": {"5": 1},
    }  # fmt: skip
    chat = {"model": "parrot", "messages": SAYS, "tools": tools} | sliders
    told = server.events("/v1/chat/completions", **chat)
    deltas = [choice["delta"] for event in told for choice in event["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "Grüezi!"
    body = {"model": "parrot", "messages": SAYS, "stream_options": {"include_usage": True}}
    events = server.events("/v1/chat/completions", **body)
    assert events[-1]["usage"]["completion_tokens"] == 9
    title = {"model": "parrot", "messages": SAYS, "stream": False, "max_completion_tokens": 300}
    assert server.ok("/v1/chat/completions", **title)["choices"][0]["finish_reason"] == "stop"


def test_open_webuis_embeddings(real: Any) -> None:
    body = {"input": ["a text"], "model": "tiny"}
    ollamas = real.ok("/api/embed", **body)["embeddings"]
    openais = real.ok("/v1/embeddings", **body)["data"]
    np.testing.assert_allclose(ollamas[0], openais[0]["embedding"], rtol=1e-5, atol=1e-6)


# LangChain


def test_langchain(server: Any) -> None:
    langchain = pytest.importorskip("langchain_ollama")
    chat = langchain.ChatOllama(
        model="parrot", base_url=server.url, validate_model_on_init=True, num_predict=200
    )
    assert chat.invoke("Grüezi!").content == "Grüezi!"
    assert "".join(piece.content for piece in chat.stream("in pieces")) == "in pieces"
    (call,) = chat.bind_tools(TOOLS).invoke(CALL).tool_calls
    chat._client.close()
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": [2]})
