"""POST /v1/decisions (OpenAI) and POST /v1/systemone (vLLM, Ollama): typed questions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    StrictBool,
    StrictStr,
    Tag,
    model_validator,
)

from mlx_parallm.server.decisions.question import MAX_OPTIONS
from mlx_parallm.server.schemas.base import CacheSalt, RequestModel, unsupported, wrong

MAX_QUESTIONS = 200
MAX_SYSTEM_ONE_QUESTIONS = 64
MAX_LEVELS = 10

Read = Annotated[
    Literal["label", "sequence"],
    Field(
        description="label: options are shown with short labels, whose probabilities are read; "
        "sequence: the probability of each option's own text as the whole reply. Then those "
        "without a description are not shown."
    ),
]


def _type_of(value: Any) -> str | None:
    """Which of the questions one is; None where it does not say."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if isinstance(kind, str) else None


def _by_type(*names: str) -> Discriminator:
    return Discriminator(
        _type_of,
        custom_error_type="unknown_question",
        custom_error_message=f"expected a type: {', '.join(names)}",
    )


# Told apart first, so that an error names the wrong part and not the whole.
_TEXT_OR_LIST = Discriminator(lambda value: "list" if isinstance(value, list) else "text")


# Pictures that belong to what is asked about.
Images = Annotated[
    list[StrictStr],
    Field(description="Pictures: data: URLs, https: URLs of hosts that are allowed, or base64."),
]


class InputText(RequestModel):
    """A part of a message."""

    type: Literal["input_text"]
    text: str


class InputMessage(RequestModel):
    """A message with what is asked about."""

    type: Literal["message"] = "message"
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[InputText], Field(min_length=1), Tag("list")],
        _TEXT_OR_LIST,
    ]

    @property
    def text(self) -> str:
        """Its parts, a line each."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class Choice(RequestModel):
    """An allowed answer."""

    value: Annotated[StrictStr, Field(min_length=1)] | StrictBool
    description: str = ""


class Level(RequestModel):
    """A level of a score."""

    label: str = Field(min_length=1)
    description: str = ""


class _DecisionQuestion(RequestModel):
    instructions: str = Field(min_length=1)
    name: str | None = Field(None, min_length=1)


class PredicateQuestion(_DecisionQuestion):
    """True or false?"""

    type: Literal["predicate"]


class ChoiceQuestion(_DecisionQuestion):
    """Which of these?"""

    type: Literal["choice"]
    choices: list[Choice] = Field(min_length=2, max_length=MAX_OPTIONS)
    read: Read = "label"

    @model_validator(mode="after")
    def _distinct(self) -> ChoiceQuestion:
        # By their types too: True is equal to 1, and "true" reads like it.
        if len({str(choice.value).lower() for choice in self.choices}) < len(self.choices):
            raise wrong("the values must be distinct", "choices")
        return self


class ScoreQuestion(_DecisionQuestion):
    """How much?"""

    type: Literal["score"]
    levels: list[Level] = Field(min_length=2, max_length=MAX_LEVELS)
    read: Read = "label"

    @model_validator(mode="after")
    def _distinct(self) -> ScoreQuestion:
        if len({level.label for level in self.levels}) < len(self.levels):
            raise wrong("the labels must be distinct", "levels")
        return self


DecisionQuestion = Annotated[
    Annotated[PredicateQuestion, Tag("predicate")]
    | Annotated[ChoiceQuestion, Tag("choice")]
    | Annotated[ScoreQuestion, Tag("score")],
    _by_type("predicate", "choice", "score"),
]


class DecisionsRequest(RequestModel):
    """Typed questions about one input."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("text")]
        | Annotated[list[InputMessage], Field(min_length=1), Tag("list")],
        _TEXT_OR_LIST,
    ]
    images: Images = Field(default_factory=list)
    questions: list[DecisionQuestion] = Field(min_length=1, max_length=MAX_QUESTIONS)
    safety_identifier: str = Field("", description="Accepted; has no effect.")
    cache_salt: CacheSalt = None


class ProbableValue(BaseModel):
    """One answer and its probability."""

    value: str | bool | int
    label: str | None = None
    probability: float


class DecisionAnswer(BaseModel):
    """The answer to a question: probability of a predicate, choice or score of the others."""

    type: Literal["predicate", "choice", "score"]
    name: str | None
    probability: float | None = None
    choice: str | bool | None = None
    score: float | None = None
    probabilities: list[ProbableValue] | None = None
    confidence: float | None = None


class DecisionsUsage(BaseModel):
    """Token counts."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class DecisionsResponse(BaseModel):
    """The answers in the questions' order."""

    model: str
    answers: list[DecisionAnswer]
    usage: DecisionsUsage


class _SystemOneQuestion(RequestModel):
    instructions: JsonValue = Field(json_schema_extra={"type": "string", "minLength": 1})

    @model_validator(mode="after")
    def _says_something(self) -> _SystemOneQuestion:
        if not self.instructions:
            raise wrong("expected instructions that are not empty", "instructions")
        return self


class NoulCriteria(RequestModel):
    """What true and false mean."""

    true: JsonValue = None
    false: JsonValue = None


class NoulQuestion(_SystemOneQuestion):
    """Yes or no?"""

    type: Literal["noul"]
    criteria: NoulCriteria | None = None


class SystemOneChoice(_SystemOneQuestion):
    """Which of these? criteria: option -> what it means, or null."""

    type: Literal["choice"]
    criteria: dict[str, JsonValue] = Field(min_length=1, max_length=MAX_OPTIONS)
    read: Read = "label"


class SystemOneScore(_SystemOneQuestion):
    """How much? criteria: the levels, lowest first."""

    type: Literal["score"]
    criteria: list[JsonValue] = Field(min_length=1, max_length=MAX_LEVELS)


SystemOneQuestion = Annotated[
    Annotated[NoulQuestion, Tag("noul")]
    | Annotated[SystemOneChoice, Tag("choice")]
    | Annotated[SystemOneScore, Tag("score")],
    _by_type("noul", "choice", "score"),
]


def _thoughtless(value: Any) -> Any:
    if isinstance(value, dict) and value.get("enable_thinking"):
        raise unsupported("thinking must be off: the answer is the reply's first token")
    return value


class SystemOneRequest(RequestModel):
    """Typed questions about one state."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    state: JsonValue = Field(description="A text or any JSON.")
    images: Images = Field(default_factory=list)
    questions: dict[str, SystemOneQuestion] = Field(
        min_length=1, max_length=MAX_SYSTEM_ONE_QUESTIONS
    )
    instructions: str = Field("", description="For all questions.")
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_thoughtless)] = Field(
        default_factory=dict, description="More variables for the chat template."
    )
    cache_salt: CacheSalt = None
    priority: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Lower is served first.")


class SystemOneResponse(BaseModel):
    """An answer by each question's id."""

    id: str
    object: Literal["structured_decision"]
    created: int
    model: str
    answers: dict[str, dict[str, Any]]
    usage: DecisionsUsage
    diagnostics: dict[str, dict[str, Any]]
