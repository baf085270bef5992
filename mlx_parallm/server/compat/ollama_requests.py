"""Ollama's requests as chats and completions of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_parallm.errors import ContextLengthError, InvalidRequestError, UnsupportedError
from mlx_parallm.server.compat.translation import (
    answer_limit,
    named,
    response_format,
    seed_of,
    translated,
)
from mlx_parallm.server.compat.turns import Content, content_of
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import chat_tracks, completion_tracks
from mlx_parallm.server.input.chat_template import NO_EFFORT, thinking_variables
from mlx_parallm.server.input.pictures.asked import listed_pictures
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.compat.ollama import (
    OllamaChatRequest,
    OllamaFields,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaOptions,
)
from mlx_parallm.server.schemas.completions import CompletionRequest

_NAMES = {
    "response_format": "format",
    "response_format.json_schema.schema": "format",
    "repetition_penalty": "options.repeat_penalty",
}


async def chat(body: OllamaChatRequest, prompts: Prompts, namespace: Namespace) -> list[Track]:
    """The one track of a chat.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    request = _chat_request(
        body, prompts, [_message(message, place) for place, message in enumerate(body.messages)]
    )
    lengths = _lengths(body, prompts)
    with named(_NAMES):
        return await chat_tracks(
            request, prompts, prompts.tokenizer, namespace=namespace, **lengths
        )


async def generate(
    body: OllamaGenerateRequest, prompts: Prompts, namespace: Namespace
) -> list[Track]:
    """The one track of a completion, whose prompt is a user's turn unless it is raw.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    if not body.raw and prompts.tokenizer.has_chat_template:
        return await _turn(body, prompts, namespace)
    if body.images:
        raise UnsupportedError("Without a template there is no place for pictures.", param="images")
    if body.system:
        raise InvalidRequestError("There is no template for a system message.", param="system")
    if body.think:
        raise InvalidRequestError("Without a template thinking is text.", param="think")
    prompt: str | list[int] = body.prompt
    if body.context:
        prompt = [*body.context, *await prompts.tokenize(body.prompt, False)]
    fields = {
        **_sampling(body),
        "prompt": prompt,
        "logprobs": (body.top_logprobs or 0) if body.logprobs else None,
    }
    request = translated(CompletionRequest, fields, {**_NAMES, "prompt": "context"})
    lengths = _lengths(body, prompts)
    with named(_NAMES):
        return await completion_tracks(
            request,
            prompts,
            prompts.tokenizer,
            namespace=namespace,
            default_max_tokens=None,
            **lengths,
        )


async def _turn(body: OllamaGenerateRequest, prompts: Prompts, namespace: Namespace) -> list[Track]:
    content = _with_images(body.prompt, body.images, "")
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    request = _chat_request(body, prompts, messages)
    lengths = _lengths(body, prompts)
    with named(_NAMES):
        return await chat_tracks(
            request,
            prompts,
            prompts.tokenizer,
            namespace=namespace,
            before=body.context,
            **lengths,
        )


def _chat_request(
    body: OllamaFields, prompts: Prompts, messages: list[dict[str, Any]]
) -> ChatCompletionRequest:
    fields = {
        **_sampling(body),
        "messages": messages,
        "tools": [{"type": "function", **tool} for tool in getattr(body, "tools", ())],
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "chat_template_kwargs": _thinking(body.think, prompts),
    }
    return translated(ChatCompletionRequest, fields, _NAMES)


def _with_images(text: str, images: Sequence[str], path: str) -> Content:
    """What a turn says: pictures first, as Ollama has it."""
    return content_of([*listed_pictures(images, f"{path}images"), text])


def _message(message: OllamaMessage, place: int) -> dict[str, Any]:
    content = _with_images(message.content, message.images, f"messages.{place}.")
    shown: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        shown["tool_calls"] = [
            {"id": call.id, "type": "function", "function": call.function.model_dump()}
            for call in message.tool_calls
        ]
    if message.thinking:
        # As the templates of reasoning models call it.
        shown["reasoning_content"] = message.thinking
    if message.tool_name:
        shown["name"] = message.tool_name
    if message.tool_call_id:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _thinking(think: bool | str | None, prompts: Prompts) -> dict[str, Any]:
    """Variables for the chat template.

    Args:
        think: None leaves it to the template.

    Raises:
        UnsupportedError: the model does not think.
    """
    if think is None:
        return {}
    try:
        effort = think if isinstance(think, str) else ("medium" if think else NO_EFFORT)
        return thinking_variables(prompts.tokenizer, effort)
    except UnsupportedError:
        if not think or prompts.dialect.thinks:
            return {}
        raise UnsupportedError("This model does not support thinking.", param="think") from None


def _sampling(body: OllamaFields) -> dict[str, Any]:
    options = body.options
    off = options.repeat_last_n == 0
    return {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "seed": seed_of(options.seed),
        "stop": options.stop,
        "repetition_penalty": 1.0 if off else options.repeat_penalty,
        "presence_penalty": 0.0 if off else options.presence_penalty,
        "frequency_penalty": 0.0 if off else options.frequency_penalty,
        "stream": body.stream,
        "response_format": response_format(body.format),
    }


def _lengths(body: OllamaFields, prompts: Prompts) -> Mapping[str, Any]:
    check_context(body.options, prompts)
    return {
        "at_most": answer_limit(body.options.num_predict),
        "context": body.options.num_ctx,
    }


def check_context(options: OllamaOptions, prompts: Prompts) -> None:
    """Raise ContextLengthError where num_ctx is more than the model has."""
    asked = options.num_ctx
    if asked is not None and asked > prompts.max_model_len:
        raise ContextLengthError(
            f"options.num_ctx is {asked}, but this model's context length is "
            f"{prompts.max_model_len} tokens.",
            param="options.num_ctx",
        )
