"""POST /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from mlx_parallm.server.input.pictures.messages import text_of
from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    FalseOnly,
    RequestModel,
    Unsupported,
    only,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.content import Content, MediaOptions
from mlx_parallm.server.schemas.sampling import NumLogprobs, ReportFields
from mlx_parallm.server.schemas.usage import Receipt, RequestMetrics, Usage


def _arguments(value: Any) -> dict[str, Any]:
    """The arguments of an earlier call, as the object that chat templates expect."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise wrong("expected a string that holds a JSON object") from None
    if not isinstance(value, dict):
        raise wrong("expected a string that holds a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called, and which.

    Attributes:
        names: of those that may be called; None is all.
        is_named: exactly one call, of the only name.
    """

    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] | None = None
    is_named: bool = False


def _tool_choice(value: Any) -> ToolChoice:
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return ToolChoice("required", (_name(value, ""),), is_named=True)
    if kind == "allowed_tools":
        return _allowed_tools(value.get("allowed_tools"))
    raise wrong('expected "none", "auto", "required", a function or allowed_tools')


def _allowed_tools(value: Any) -> ToolChoice:
    path = "allowed_tools"
    if not isinstance(value, dict) or value.get("mode") not in ("auto", "required"):
        raise wrong('expected "auto" or "required"', f"{path}.mode")
    tools = value.get("tools")
    if not isinstance(tools, list) or not tools:
        raise wrong("expected a list of tools", f"{path}.tools")
    names = [_name(tool, f"{path}.tools.{place}.") for place, tool in enumerate(tools)]
    return ToolChoice(value["mode"], tuple(names))


def _name(tool: Any, path: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise wrong("expected a name", f"{path}function.name")
    return name


def _budget(value: Any) -> Any:
    return None if value == -1 else value


def _verbosity(value: Any) -> Any:
    return only("medium", '"medium"')(value)


class CalledFunction(RequestModel):
    """The name and arguments of an earlier call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    arguments: Annotated[
        dict[str, Any],
        PlainValidator(_arguments),
        WithJsonSchema({"type": "string", "pattern": r"^\{\}$", "description": "A JSON object."}),
    ] = Field(default_factory=dict)


class MessageToolCall(RequestModel):
    """A call that the model made in an earlier turn."""

    model_config = ConfigDict(extra="allow")

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(RequestModel):
    """One turn. Fields not named here are handed to the chat template."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "anyOf": [
                {"properties": {"role": {"const": "assistant"}}},
                {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
            ]
        },
    )

    role: str = Field(
        min_length=1,
        max_length=64,
        description="developer, system, user, assistant, tool, or one that the template knows.",
        json_schema_extra={"enum": ["developer", "system", "user", "assistant", "tool"]},
    )
    content: Content | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] = Field(default_factory=list)
    tool_call_id: str | None = None
    audio: Unsupported = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise wrong(f"a message of role {self.role!r} needs content", "content")
        return self


class FunctionDefinition(RequestModel):
    """A function that the model may call; `parameters` is a JSON schema."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = Field(False, description="Calls keep to the schema, also under auto.")


class Tool(RequestModel):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[Literal["function"], BeforeValidator(only("function", '"function"'))]
    function: FunctionDefinition


class ChatTemplateFields(RequestModel):
    """What a chat template is given. Shared with /tokenize."""

    messages: list[ChatMessage] = Field(min_length=1, description="The conversation so far.")
    tools: list[Tool] = Field(default_factory=list, max_length=1024)
    add_generation_prompt: bool = Field(True, description="End the prompt with the turn to write.")
    continue_final_message: bool = Field(False, description="Write on in the last message.")
    add_special_tokens: bool = Field(False, description="Add BOS to what the template made.")
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More variables for the chat template."
    )
    media_io_kwargs: MediaOptions = Field(
        default_factory=MediaOptions, description="Which frames of videos are shown."
    )
    chat_template: Unsupported = None
    documents: Unsupported = None

    @property
    def writes_new_message(self) -> bool:
        """Whether the answer is a message of its own, and not the rest of the last one."""
        return self.add_generation_prompt and not self.continue_final_message

    @property
    def continued(self) -> str | None:
        """The message that the answer goes on with; None for one of its own."""
        content = self.messages[-1].content
        return None if self.writes_new_message or content is None else text_of(content)

    @model_validator(mode="after")
    def _one_ending(self) -> ChatTemplateFields:
        # add_generation_prompt is on by default, so only an explicit one is a contradiction.
        explicit = "add_generation_prompt" in self.model_fields_set
        if self.continue_final_message and self.add_generation_prompt and explicit:
            raise wrong(
                "continue_final_message and add_generation_prompt exclude each other",
                "continue_final_message",
            )
        if self.continue_final_message and isinstance(self.messages[-1].content, list):
            raise wrong("a message with pictures cannot be continued", "continue_final_message")
        return self


class ChatCompletionRequest(ChatTemplateFields, ReportFields):
    """A conversation in, the next message out."""

    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="The older name of max_completion_tokens."
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Default: what is left of the context."
    )
    logprobs: bool = False
    top_logprobs: NumLogprobs | None = Field(
        None, description="Alternatives per token; needs logprobs: true."
    )
    tool_choice: Annotated[
        ToolChoice,
        PlainValidator(_tool_choice),
        WithJsonSchema({"enum": ["none", "auto"]}),
    ] = Field(
        default_factory=ToolChoice,
        description="Also required, a function, or allowed_tools: then the answer is calls.",
    )
    parallel_tool_calls: bool = Field(True, description="false: end after the first call.")
    reasoning_effort: str | None = Field(
        None, max_length=64, description="A variable of the chat template; `none` does not think."
    )
    thinking_token_budget: Annotated[
        Annotated[int, Field(ge=1, le=MAX_TOKEN_ID)] | None, BeforeValidator(_budget)
    ] = Field(None, description="Tokens of thinking at most; then it is ended. -1: no limit.")
    include_reasoning: bool = Field(True, description="false: think, but do not show it.")
    echo: bool = Field(
        False, description="Begin the answer with the last message, where it has the same role."
    )

    modalities: Annotated[
        list[str], BeforeValidator(only(["text"], '["text"]')), WithJsonSchema({"const": ["text"]})
    ] = Field(default_factory=lambda: ["text"])
    verbosity: Annotated[str, BeforeValidator(_verbosity), WithJsonSchema({"const": "medium"})] = (
        "medium"
    )
    store: FalseOnly = False
    metadata: dict[str, Any] = Field(
        default_factory=dict, description="Accepted; has no effect, like the next five."
    )
    service_tier: str = ""
    prompt_cache_key: str = ""
    prompt_cache_retention: str = ""
    prompt_cache_options: dict[str, Any] = Field(default_factory=dict)
    safety_identifier: str = ""

    audio: Unsupported = None
    function_call: Unsupported = None
    functions: Unsupported = None
    moderation: Unsupported = None
    prediction: Unsupported = None
    web_search_options: Unsupported = None
    best_of: Unsupported = None
    suffix: Unsupported = None

    @property
    def shown_tools(self) -> list[Tool]:
        """The tools that the model is told of."""
        choice = self.tool_choice
        if choice.mode == "none":
            return []
        return self.callable_tools if choice.mode == "auto" else self.tools

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that may be called."""
        names = self.tool_choice.names
        return [tool for tool in self.tools if names is None or tool.function.name in names]

    @model_validator(mode="after")
    def _has_the_chosen_tools(self) -> ChatCompletionRequest:
        choice, known = self.tool_choice, {tool.function.name for tool in self.tools}
        if choice.mode == "required" and not known:
            raise wrong("there are no tools to call", "tool_choice")
        missing = next((name for name in choice.names or () if name not in known), None)
        if missing is not None:
            raise wrong(f"there is no tool {missing[:100]!r}", "tool_choice")
        return self

    @model_validator(mode="after")
    def _check_together(self) -> ChatCompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options is only allowed when stream is true", "stream_options")
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs needs logprobs to be true", "top_logprobs")
        self.check_named_tokens(reports=self.logprobs, generates=True)
        if self.stream and self.prompt_logprobs is not None:
            raise unsupported("prompt_logprobs cannot be streamed", "prompt_logprobs")
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise wrong(
                "max_tokens and max_completion_tokens differ; send one", "max_completion_tokens"
            )
        return self


class TopLogprob(BaseModel):
    """One alternative. bytes: its UTF-8, also where a token is part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    """One token of the answer with the likeliest alternatives, best first."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the answer's tokens."""

    content: list[ChatTokenLogprob] | None
    refusal: list[ChatTokenLogprob] | None = None


class ToolCallFunction(BaseModel):
    """What to call; arguments is a string that holds JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: ToolCallFunction


class AnswerMessage(BaseModel):
    """The message that was generated."""

    role: str
    content: str | None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    weight_versions: list[int] | None = None
    base_weight_versions: list[int] | None = None
    citations: list[dict[str, Any]] | None = None


class ChatCompletionResponse(BaseModel):
    """n answers to one conversation. prompt_logprobs has vLLM's shape."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[str, Any] | None] | None = None
    prompt_token_ids: list[int] | None = None
    metrics: RequestMetrics | None = None
    receipts: list[Receipt] | None = None
