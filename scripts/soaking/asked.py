"""Random requests to every kind of endpoint, and what their answers say."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

WORDS = "one two three four five plus minus is the a cat dog hello what 1 2 3 ? . é 🙂".split()
COLLECTION = "soak-kept"  # never changed while it is soaked
ADAPTER = "soak-adapter"
_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["blue", "red"]}, "count": {"type": "integer"}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class Asked:
    """A request that has one right answer: it is greedy or has a seed.

    Attributes:
        said: what an answer says, without what changes from answer to answer.
    """

    path: str
    body: dict[str, Any]
    said: Callable[[Any], Any] = field(repr=False)


def text(rng: random.Random, most: int = 60) -> str:
    """Some words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def any_request(
    rng: random.Random, model: str, *, memories: bool, adapter: bool, tools: bool
) -> Asked:
    """A request of some kind.

    Args:
        memories: whether there is COLLECTION; adapter: whether there is ADAPTER.
        tools: whether the model calls any.
    """
    kinds = [_completion, _chat, _schema, _grammar, _response, _message, _ollama]
    kinds += [_embedding, _scored, *([with_tools] if tools else [])]
    asked = rng.choice(kinds)(rng, model)
    takes_more = asked.path.startswith(("/v1/completions", "/v1/chat"))
    if memories and takes_more and rng.random() < 0.25:
        memory = {"collections": [COLLECTION], "topk": rng.randint(1, 16)}
        asked = Asked(asked.path, {**asked.body, "memory": memory}, asked.said)
    elif adapter and takes_more and rng.random() < 0.3:
        asked = Asked(asked.path, {**asked.body, "model": ADAPTER}, asked.said)
    return asked


def _sampling(rng: random.Random) -> dict[str, Any]:
    most = {"max_tokens": rng.randint(1, 40)}
    if rng.random() < 0.4:
        return {**most, "temperature": 0}
    drawn: dict[str, Any] = rng.choice([{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}])
    return {**most, "temperature": 1, "seed": rng.randrange(1000), **drawn}


def _turns(rng: random.Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": text(rng)}]


def _completion(rng: random.Random, model: str) -> Asked:
    body = {"model": model, "prompt": text(rng), **_sampling(rng), "n": rng.randint(1, 3)}
    if rng.random() < 0.3:
        body["logprobs"] = rng.randint(0, 3)
    return Asked("/v1/completions", body, _texts)


def _texts(answer: Any) -> Any:
    return [(choice["text"], choice["finish_reason"]) for choice in answer["choices"]]


def _chat(rng: random.Random, model: str, **more: Any) -> Asked:
    body = {"model": model, "messages": _turns(rng), **_sampling(rng), **more}
    return Asked("/v1/chat/completions", body, _chat_said)


def _chat_said(answer: Any) -> Any:
    found = []
    for choice in answer["choices"]:
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        found.append((message["content"], calls, choice["finish_reason"]))
    return found


def _schema(rng: random.Random, model: str) -> Asked:
    schema = {"name": "answer", "strict": True, "schema": _SCHEMA}
    return _chat(rng, model, response_format={"type": "json_schema", "json_schema": schema})


def _grammar(rng: random.Random, model: str) -> Asked:
    structure = rng.choice([{"regex": "[a-d]{1,12}"}, {"choice": ["yes", "no", "perhaps"]}])
    body = {"model": model, "prompt": text(rng), **_sampling(rng), "structured_outputs": structure}
    return Asked("/v1/completions", body, _texts)


def with_tools(rng: random.Random, model: str) -> Asked:
    """A chat whose answer may call a tool, or has to."""
    choice = rng.choice(["auto", "required", "none"])
    return _chat(rng, model, tools=[_TOOL], tool_choice=choice)


def _response(rng: random.Random, model: str) -> Asked:
    body = {"model": model, "input": text(rng), "max_output_tokens": 16, "temperature": 0}
    return Asked("/v1/responses", {**body, "store": rng.random() < 0.5}, _response_said)


def _response_said(answer: Any) -> Any:
    return [item.get("content") or item.get("arguments") for item in answer["output"]]


def _message(rng: random.Random, model: str) -> Asked:
    body = {"model": model, "messages": _turns(rng), "max_tokens": 16, "temperature": 0}
    return Asked("/v1/messages", body, lambda answer: answer["content"])


def _ollama(rng: random.Random, model: str) -> Asked:
    options = {"temperature": 0, "num_predict": 16}
    body = {"model": model, "prompt": text(rng), "stream": False, "options": options}
    return Asked("/api/generate", body, lambda answer: answer["response"])


def _embedding(rng: random.Random, model: str) -> Asked:
    inputs = [text(rng) for _ in range(rng.randint(1, 3))]

    def rounded(answer: Any) -> Any:
        return [[round(value, 3) for value in one["embedding"]] for one in answer["data"]]

    return Asked("/v1/embeddings", {"model": model, "input": inputs}, rounded)


def _scored(rng: random.Random, model: str) -> Asked:
    body = {"model": model, "prompt": text(rng), "max_tokens": 0, "echo": True, "logprobs": 0}

    def rounded(answer: Any) -> Any:
        values = answer["choices"][0]["logprobs"]["token_logprobs"]
        return [None if value is None else round(value, 2) for value in values]

    return Asked("/v1/completions", body, rounded)


def same(one: Any, other: Any) -> bool:
    """Whether two answers say the same; numbers may be apart by the last digit that was kept."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 0.011
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
