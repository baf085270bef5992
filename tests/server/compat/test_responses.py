"""OpenAI's Responses API: the real SDK, what Codex sends, and the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from mlx_parallm.server.response_store import ResponseStore, Stored

PATH = "/v1/responses"
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "How it is outside",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
NAMESPACE = {"type": "namespace", "name": "crew", "description": "Agents", "tools": [TOOL]}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


@pytest.fixture
def connect() -> Iterator[Callable[[Any], Any]]:
    """connect(server) gives a client of it."""
    made: list[openai.OpenAI] = []

    def make(server: Any) -> Any:
        made.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server: Any, connect: Any) -> Any:
    return connect(server)


def prompt_of(server: Any) -> str:
    return str(server.state.prompts().text_of(server.engine.submitted[-1].prompt, False))


def says(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def events_of(response: Any) -> list[dict[str, Any]]:
    """The events of a stream, whose names and numbers are checked."""
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    pairs = [part.split("\n") for part in parts]
    events = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [name.removeprefix("event: ") for name, _ in pairs] == [e["type"] for e in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def runs(events: list[dict[str, Any]]) -> list[str]:
    """The events' types without `response.`, neighbours of one type once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


def test_a_response(client: Any) -> None:
    response = client.responses.create(model="parrot", input="Hello.", instructions="Be kind.")
    assert response.output_text == "Hello."
    assert (response.status, response.error, response.object) == ("completed", None, "response")
    assert response.instructions == "Be kind."
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (17, 7, 24)
    assert usage.input_tokens_details.cached_tokens == 2
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_a_response_that_is_cut_off(client: Any, server: Any) -> None:
    response = client.responses.create(model="parrot", input="Hello.", max_output_tokens=3)
    assert (response.status, response.output_text) == ("incomplete", "Hel")
    assert response.incomplete_details.reason == "max_output_tokens"
    asked = {"input": "Hello.", "max_output_tokens": 3, "stream": True}
    events = events_of(server.post(PATH, **asked))
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"
    # More than there is room for is no error.
    client.responses.create(model="parrot", input="a", max_output_tokens=10_000)


def test_a_stream(client: Any) -> None:
    with client.responses.stream(model="parrot", input="Hello.") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "Hello."
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == "Hello."
    assert len(deltas) == 6
    assert deltas[2].snapshot == "Hel"


def test_a_call_and_its_output(client: Any, server: Any) -> None:
    asked = {"model": "parrot", "tools": [TOOL]}
    for stream in (False, True):
        if stream:
            with client.responses.stream(**asked, input=f"I look. {CALL}") as events:
                kinds = [event.type for event in events]
                response = events.get_final_response()
            assert kinds.count("response.function_call_arguments.delta") > 5
            assert kinds.count("response.function_call_arguments.done") == 1
        else:
            response = client.responses.create(**asked, input=f"I look. {CALL}")
        message, call = response.output
        assert message.content[0].text == "I look."
        assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
        assert json.loads(call.arguments) == {"city": "Bern"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    client.responses.create(**asked, input=[output], previous_response_id=response.id)
    said = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    assert prompt_of(server).endswith(f"<|assistant|>I look.{said}<|user|>sunny<|assistant|>")


def test_calls_next_to_each_other_are_one_turn(client: Any, server: Any) -> None:
    calls = [
        {"type": "function_call", "call_id": id_, "name": "weather", "arguments": "{}"}
        for id_ in ("a", "b")
    ]
    outputs = [
        {"type": "function_call_output", "call_id": id_, "output": id_.upper()} for id_ in "ab"
    ]
    written = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    client.responses.create(model="parrot", input=[says("Hi"), *calls, *outputs], tools=[TOOL])
    said = f"<|user|>Hi<|assistant|>{written}{written}<|user|>A<|user|>B<|assistant|>"
    assert prompt_of(server) == f"[weather ]{said}"


def test_the_order_of_events(thinker: Any) -> None:
    text = f"<think>Hm.</think>I look. {CALL}"
    events = events_of(thinker.post(PATH, input=text, tools=[TOOL], stream=True))
    begin, end = "output_item.added", "output_item.done"
    part, done = "content_part.added", "content_part.done"
    assert runs(events) == [
        *("created", "in_progress"),
        *(begin, part, "reasoning_text.delta", "reasoning_text.done", done, end),
        *(begin, part, "output_text.delta", "output_text.done", done, end),
        *(begin, "function_call_arguments.delta", "function_call_arguments.done", end),
        "completed",
    ]
    items = [event["item"] for event in events if event["type"] == f"response.{end}"]
    assert events[-1]["response"]["output"] == items
    for event in events:
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]


def test_thinking(thinker: Any, connect: Any) -> None:
    client = connect(thinker)
    asked = {"model": "parrot", "reasoning": {"effort": "low"}}
    response = client.responses.create(**asked, input="<think>Hm.</think>Yes.")
    thought, message = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Hm.", [])
    assert message.content[0].text == response.output_text == "Yes."
    assert response.usage.output_tokens_details.reasoning_tokens == 3
    with client.responses.stream(**asked, input="<think>Hm.</think>Yes.") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output[0].content[0].text == "Hm."
    assert "response.reasoning_text.done" in kinds
    # Sent back without the store, as clients do that keep nothing here.
    include = ["reasoning.encrypted_content"]
    response = client.responses.create(
        **asked, input="<think>Hm.</think>Yes.", include=include, store=False
    )
    thought = response.output[0].model_dump()
    thinker.engine.loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.reasoning_content or '' }}|{{ m.content }}|{% endfor %}"
    )
    items = [
        {"type": "reasoning", "summary": [], "encrypted_content": thought["encrypted_content"]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And?"},
    ]
    client.responses.create(model="parrot", input=items)
    assert prompt_of(thinker) == "Hm.|Yes.||And?|"


def test_thinking_as_a_summary(thinker: Any, connect: Any) -> None:
    """Where a summary is asked for, clients show nothing else."""
    client = connect(thinker)
    asked = {"model": "parrot", "reasoning": {"summary": "auto"}}
    text = "<think>Hm.</think>Yes."
    whole = client.responses.create(**asked, input=text)
    with client.responses.stream(**asked, input=text) as stream:
        events = list(stream)
        final = stream.get_final_response()
    for response in (whole, final):
        thought = response.output[0]
        assert ([part.text for part in thought.summary], thought.content) == (["Hm."], [])
        assert response.output_text == "Yes."
    added = [event.item for event in events if event.type == "response.output_item.added"]
    assert (added[0].summary, added[0].content) == ([], [])
    names = [event.type.removeprefix("response.") for event in events]
    pieces = [name for name in names if name.startswith("reasoning")]
    assert pieces == [
        "reasoning_summary_part.added",
        *["reasoning_summary_text.delta"] * 3,
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]
    # Sent back, it is what was thought.
    thinker.engine.loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.reasoning_content or '' }}|{{ m.content }}|{% endfor %}"
    )
    client.responses.create(**asked, input=[*final.output, says("And?")])
    assert prompt_of(thinker) == "Hm.|Yes.||And?|"


def test_logprobs(client: Any) -> None:
    include = ["message.output_text.logprobs"]
    asked = {"model": "parrot", "input": "abc", "include": include, "top_logprobs": 2}
    entries = client.responses.create(**asked).output[0].content[0].logprobs
    assert [entry.token for entry in entries][:3] == ["a", "b", "c"]
    assert len(entries[0].top_logprobs) == 2
    stream = client.responses.create(**asked, stream=True)
    deltas = [event for event in stream if event.type == "response.output_text.delta"]
    assert [event.logprobs[0].token for event in deltas] == ["a", "b", "c"]


# What is kept


def test_stored_responses(client: Any, server: Any) -> None:
    first = client.responses.create(model="parrot", input="One.", instructions="Be kind.")
    assert client.responses.retrieve(first.id).output_text == "One."
    second = client.responses.create(model="parrot", input="Two.", previous_response_id=first.id)
    # Instructions are those of the request alone.
    assert prompt_of(server) == "<|user|>One.<|assistant|>One.<|user|>Two.<|assistant|>"
    third = client.responses.create(model="parrot", input="3.", previous_response_id=second.id)
    assert "One.<|user|>Two.<|assistant|>Two.<|user|>3." in prompt_of(server)
    items = list(client.responses.input_items.list(third.id))
    assert [item.content[0].text for item in items] == ["One.", "One.", "Two.", "Two.", "3."]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="parrot", input="x", previous_response_id=first.id)
    # What went on from it has all of it.
    client.responses.create(model="parrot", input="4.", previous_response_id=third.id)
    assert prompt_of(server).startswith("<|user|>One.")


def test_references_to_what_is_stored(client: Any, server: Any) -> None:
    """Vercel's AI SDK sends the ids of messages in their place."""
    first = client.responses.create(model="parrot", input="One.")
    reference = {"type": "item_reference", "id": first.output[0].id}
    client.responses.create(model="parrot", input=[says("One."), reference, says("Two.")])
    assert prompt_of(server) == "<|user|>One.<|assistant|>One.<|user|>Two.<|assistant|>"
    for unknown in (f"{reference['id']}0", "msg_1"):
        lost = {"type": "item_reference", "id": unknown}
        with pytest.raises(openai.NotFoundError, match=unknown) as caught:
            client.responses.create(model="parrot", input=[lost])
        assert caught.value.param == "input.0.id"


def test_how_long_a_prompt_is(client: Any) -> None:
    first = client.responses.create(model="parrot", input="One.")
    asked = {"input": "Two.", "instructions": "Be kind.", "previous_response_id": first.id}
    counted = client.responses.input_tokens.count(model="parrot", **asked)
    assert counted.object == "response.input_tokens"
    usage = client.responses.create(model="parrot", **asked).usage
    assert counted.input_tokens == usage.input_tokens


def test_sampling_fields_of_other_endpoints(server: Any) -> None:
    asked = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 3, "stop": "c"}
    assert server.ok(PATH, input="abc", **asked)["output"][0]["content"][0]["text"] == "ab"
    params = server.engine.submitted[-1].params
    assert (params.top_k, params.min_p, params.repetition_penalty) == (5, 0.1, 1.5)
    variables = {"chat_template_kwargs": {"suffix": "!"}}
    server.ok(PATH, input="abc", **variables)
    assert prompt_of(server).endswith("<|assistant|>!")


def test_what_is_not_to_be_stored(client: Any) -> None:
    response = client.responses.create(model="parrot", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_streams_are_stored(client: Any) -> None:
    stream = client.responses.create(model="parrot", input="Hello.", stream=True)
    final = list(stream)[-1].response
    assert client.responses.retrieve(final.id) == final


def test_cancel(serve: Any, helpers: Any, connect: Any) -> None:
    server = serve()
    client = connect(server)
    with server.engine.held(steps=6):
        stream = client.responses.create(model="parrot", input="long " * 50, stream=True)
        events = [next(stream) for _ in range(6)]
        id_ = events[0].response.id
        assert client.responses.cancel(id_).status == "cancelled"
        last = list(stream)[-1]
    assert (last.type, last.response.status) == ("response.failed", "cancelled")
    helpers.wait_until(lambda: not server.engine.live)
    assert client.responses.retrieve(id_).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(id_)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_none")


def test_a_file_keeps_responses_over_a_restart(serve: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "kept" / "responses.sqlite")
    first = serve(response_store=path)
    id_ = first.ok(PATH, input="One.")["id"]
    first.stop()
    first.join()
    second = serve(response_store=path)
    second.ok(PATH, input="Two.", previous_response_id=id_)
    assert prompt_of(second) == "<|user|>One.<|assistant|>One.<|user|>Two.<|assistant|>"
    assert second.http.delete(f"{PATH}/{id_}").json()["deleted"] is True
    assert second.http.get(f"{PATH}/{id_}").status_code == 404


async def _kept(store: ResponseStore, count: int) -> list[bool]:
    return [await store.get(f"r{number}", "") is not None for number in range(count)]


def test_memory_is_bounded() -> None:
    store = ResponseStore(max_bytes=1000)
    for number in range(5):
        store.put(Stored("", {"id": f"r{number}", "text": "x" * 300}, []))
    # Each has about 350 bytes.
    assert asyncio.run(_kept(store, 5)) == [False, False, False, True, True]
    store.close()


def test_responses_belong_to_their_key(serve: Any) -> None:
    server = serve(api_key=("one", "two"))
    ids = {}
    for key in ("one", "two"):
        headers = {"authorization": f"Bearer {key}"}
        ids[key] = server.http.post(PATH, json={"input": "x"}, headers=headers).json()["id"]
    for key, status in (("one", 200), ("two", 404)):
        headers = {"authorization": f"Bearer {key}"}
        assert server.http.get(f"{PATH}/{ids['one']}", headers=headers).status_code == status


# What clients send


def test_what_codex_sends(server: Any) -> None:
    """A request as Codex CLI 0.169 sends it, shortened."""
    request = {
        "model": "parrot",
        "instructions": "You are a coding agent.",
        "input": [
            {
                "type": "message",
                "role": "developer",
                "content": [{"type": "input_text", "text": "<permissions>"}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "<environment_context>"}],
            },
            {
                "type": "message",
                "role": "user",
                "content": [{"type": "input_text", "text": "Say hi."}],
            },
        ],
        "tools": [
            {**TOOL, "name": "shell"},
            {"type": "namespace", "name": "mcp", "tools": [TOOL]},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-ab",
        "client_metadata": {"x-codex-installation-id": "1"},
    }
    events = events_of(server.post(PATH, **request))
    assert events[-1]["type"] == "response.completed"
    system = "<|user|>You are a coding agent.\n<permissions>"
    said = f"{system}<|user|><environment_context>\nSay hi.<|assistant|>"
    assert prompt_of(server) == f"[shell mcp__weather ]{said}"


def test_tools_in_a_namespace(client: Any, server: Any) -> None:
    """Codex groups tools so: models see one name, clients get both."""
    call = CALL.replace('"weather"', '"crew__weather"')
    asked = {"model": "parrot", "tools": [NAMESPACE], "input": call}
    with client.responses.stream(**asked) as stream:
        added = [event for event in stream if event.type == "response.output_item.added"]
        streamed = stream.get_final_response()
    assert prompt_of(server).startswith("[crew__weather ]")
    whole = client.responses.create(**asked)
    for item in (added[0].item, streamed.output[0], whole.output[0]):
        assert (item.type, item.namespace, item.name) == ("function_call", "crew", "weather")
    assert [tool.type for tool in whole.tools] == ["namespace"]
    # Sent back, it is the model's name again.
    output = {"type": "function_call_output", "call_id": whole.output[0].call_id, "output": "sun"}
    items = [{"role": "user", "content": "Hm"}, whole.output[0].model_dump(), output]
    client.responses.create(model="parrot", input=items, tools=[NAMESPACE])
    assert '{"name": "crew__weather", "arguments": {"city": "Bern"}}' in prompt_of(server)
    choice = {"type": "function", "name": "weather", "namespace": "crew"}
    assert client.responses.create(**asked, tool_choice=choice).output[0].name == "weather"


def test_a_call_begins_without_arguments(client: Any) -> None:
    """Clients add the pieces to what the first event has."""
    stream = client.responses.create(model="parrot", input=CALL, tools=[TOOL], stream=True)
    added = [event.item for event in stream if event.type == "response.output_item.added"]
    assert [item.arguments for item in added] == [""]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"input": [{"type": "item_reference"}]}, "input.0.id"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input.0.type"),
        ({"top_k": "many"}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input.0.name"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "namespace", "name": "crew"}]}, "tools.0.tools"),
        ({"tools": [{**NAMESPACE, "tools": [{"type": "function"}]}]}, "tools.0.tools.0.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_errors(server: Any, change: dict[str, Any], param: str) -> None:
    response = server.post(PATH, **{"input": "x", **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_error_in_a_stream_is_an_event(serve: Any, helpers: Any) -> None:
    for seconds in (0.2, 2, 20):  # long enough for the first token
        server = serve(request_timeout=seconds)
        with server.engine.held(steps=1):
            response = server.post(PATH, input="x" * 200, stream=True)
        if response.status_code == 200:
            break
    events = events_of(response)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert events[-1]["response"]["status"] == "failed"
