"""Messages and tools through the model's chat template."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from jinja2 import TemplateError

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.input.pictures.messages import for_template
from mlx_parallm.server.schemas.chat import ChatMessage, ChatTemplateFields, Tool

# The reasoning effort of an answer without thinking.
NO_EFFORT = "none"

logger = logging.getLogger(__name__)

# Names that templates are given by us; a client's variables must not replace them.
_OURS = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})


@dataclass(frozen=True)
class Conversation:
    """What a chat template is given.

    Attributes:
        messages: as templates know them.
        variables: everything else that the client says, tools included.
        ending: how the prompt ends, as transformers' function takes it.
    """

    messages: list[dict[str, Any]]
    variables: dict[str, Any]
    ending: dict[str, bool]

    @property
    def said(self) -> list[Any]:
        """Everything that may hold text of the client."""
        return [*({**message, "role": ""} for message in self.messages), self.variables]

    def changed(self, change: Callable[[Any], Any]) -> Conversation:
        """The same conversation with another value for everything that the client says."""
        messages = [{**change(m), "role": m["role"]} for m in self.messages]
        return replace(self, messages=messages, variables=change(self.variables))


def conversation_of(
    tokenizer: Any,
    dialect: Dialect,
    body: ChatTemplateFields,
    tools: Sequence[Tool],
    reasoning_effort: str | None = None,
) -> Conversation:
    """A request's messages, tools and variables.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper.
        dialect: its own.
        tools: those to show; may be fewer than in the body.

    Raises:
        InvalidRequestError: there is no template, or a variable that cannot be set.
        UnsupportedError: the model has no tool calling, or no reasoning effort.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequestError(
            "This model has no chat template: use /v1/completions, or start the server with "
            "--chat-template.",
            param="messages",
        )
    variables = _variables(tokenizer, body.chat_template_kwargs, reasoning_effort)
    if tools:
        check_tools(dialect)
        variables["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    ending = {"add_generation_prompt": body.add_generation_prompt}
    if body.continue_final_message:
        ending = {"add_generation_prompt": False, "continue_final_message": True}
    return Conversation([_message(message) for message in body.messages], variables, ending)


def render(tokenizer: Any, conversation: Conversation) -> str:
    """The prompt's text.

    Raises:
        InvalidRequestError: the template refuses these messages.
    """
    try:
        text = tokenizer.apply_chat_template(
            conversation.messages,
            tokenize=False,
            **conversation.ending,
            **conversation.variables,
        )
    except (TemplateError, ValueError) as error:
        raise InvalidRequestError(
            f"The chat template refused the messages: {error}", param="messages"
        ) from None
    except Exception as error:
        # Templates are the checkpoint's own programs; what they trip over is in the messages.
        logger.info("the chat template failed", exc_info=error)
        raise InvalidRequestError(
            "The chat template could not be applied to the messages.", param="messages"
        ) from None
    return str(text)


def check_tools(dialect: Dialect) -> None:
    """Refuse tools for a model whose calls could not be read.

    Raises:
        UnsupportedError: there is no parser for them.
    """
    if not dialect.has_calls:
        raise UnsupportedError("This model does not support tool calling.", param="tools")


def _variables(tokenizer: Any, given: dict[str, Any], effort: str | None) -> dict[str, Any]:
    for name in given:
        if name in _OURS or name in _reserved_names():
            raise InvalidRequestError(
                f"{name!r} cannot be set through chat_template_kwargs.",
                param=f"chat_template_kwargs.{name}",
            )
    variables = dict(given)
    return variables if effort is None else {**thinking_variables(tokenizer, effort), **variables}


def thinking_variables(tokenizer: Any, effort: str) -> dict[str, Any]:
    """Variables of the chat template for a reasoning effort.

    Args:
        effort: "none" does not think; any other, where a template only knows thinking or not,
            thinks.

    Raises:
        UnsupportedError: the template knows neither.
    """
    source = _source(tokenizer)
    if "reasoning_effort" in source:
        return {"reasoning_effort": effort}
    if "enable_thinking" in source:
        return {"enable_thinking": effort != NO_EFFORT}
    raise UnsupportedError(
        "This model's chat template has no reasoning effort.", param="reasoning_effort"
    )


def has_variable(tokenizer: Any, name: str) -> bool:
    """Whether the chat template speaks of this variable."""
    return name in _source(tokenizer)


def effort_variables(tokenizer: Any, effort: str | None) -> dict[str, Any]:
    """The same for APIs whose clients send an effort to every model: nothing where it has none."""
    try:
        return {} if effort is None else thinking_variables(tokenizer, effort)
    except UnsupportedError:
        return {}


def _source(tokenizer: Any) -> str:
    return json.dumps(tokenizer.chat_template) if tokenizer.chat_template else ""


@cache
def _reserved_names() -> frozenset[str]:
    """Parameters of transformers' function: `chat_template`, `tokenize`, ... are not variables."""
    from transformers import PreTrainedTokenizerBase

    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    return frozenset(parameters)


def _message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates know it."""
    fields = message.model_dump(exclude={"content"}, exclude_none=True)
    # Templates know the older name of the developer's role.
    if message.role == "developer":
        fields["role"] = "system"
    # What clients send back as they got it, by the name that templates know.
    thought = fields.pop("reasoning", None)
    if thought is not None:
        fields.setdefault("reasoning_content", thought)
    if "reasoning_content" in fields:
        # gpt-oss's name of it.
        fields.setdefault("thinking", fields["reasoning_content"])
    # Many templates test content without asking whether it is there.
    fields["content"] = for_template(message.content or "")
    if not message.tool_calls:
        fields.pop("tool_calls", None)
    return fields
