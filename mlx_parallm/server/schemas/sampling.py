"""The fields that every generating request shares; names and meanings are OpenAI's and vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from mlx_parallm.engine.sequence import LogprobsMode
from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    CacheSalt,
    FalseOnly,
    RequestModel,
    Unsupported,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.collections import MemoryFields
from mlx_parallm.server.schemas.structured import StructuredFields

MAX_SEQUENCES = 128
MAX_LOGPROBS = 20  # where --max-logprobs says nothing else
MAX_NAMED_TOKENS = 1024
MAX_STOPS = 16


def _stop_list(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong("expected a string or a list of strings")
    if len(stops) > MAX_STOPS:
        raise wrong(f"at most {MAX_STOPS} stop strings are allowed")
    if not all(stops):
        raise wrong("a stop string cannot be empty")
    return stops


def _bias_by_id(value: Any) -> Any:
    if not isinstance(value, dict):
        raise wrong("expected an object that maps token ids to numbers")
    return {_token_id(key): _bias(bias) for key, bias in value.items()}


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 10 or int(key) > MAX_TOKEN_ID:
        raise wrong(f"{key[:20]!r} is not a token id")
    return int(key)


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
        raise wrong("each bias must be a number from -100 to 100")
    return float(value)


StopStrings = Annotated[
    list[str],
    BeforeValidator(_stop_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "array",
                    "items": {"type": "string", "minLength": 1},
                    "maxItems": MAX_STOPS,
                },
            ]
        }
    ),
]
LogitBias = Annotated[
    dict[int, float],
    BeforeValidator(_bias_by_id),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        }
    ),
]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
# The server's own limit is checked when the model is known; -1 is the whole vocabulary.
NumLogprobs = Annotated[
    int,
    Field(ge=-1, le=MAX_TOKEN_ID),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}),
]


def _no_beams(value: Any) -> Any:
    if value is not False:
        raise unsupported(
            "beam search is not offered: its rows depend on each other, and here each row is "
            "what it is alone; best_of returns the likeliest of several samples"
        )
    return value


class StreamOptions(RequestModel):
    """What a stream carries besides its text."""

    include_usage: bool = Field(False, description="A last event with the usage.")
    continuous_usage_stats: bool = Field(False, description="Usage so far in every event.")
    include_obfuscation: FalseOnly = False


class SamplingFields(StructuredFields):
    """How to sample, when to stop, and what to report."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    n: int = Field(1, ge=1, le=MAX_SEQUENCES, description="Answers per prompt.")
    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, le=MAX_TOKEN_ID, description="0 or -1 is off.")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="Same seed, same request: same tokens."
    )
    stop: StopStrings = Field(default_factory=list, description="Up to 16 strings that end it.")
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=1024)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = Field(False, description="Go on through the model's end tokens.")
    min_tokens: int = Field(0, ge=0, le=MAX_TOKEN_ID)
    skip_special_tokens: bool = True
    allowed_token_ids: list[TokenId] | None = Field(
        None, min_length=1, description="Only these tokens can be sampled."
    )
    prompt_logprobs: NumLogprobs | None = Field(
        None, description="Alternatives per prompt token, vLLM's shape."
    )
    return_tokens_as_token_ids: bool = Field(
        False, description='Tokens in logprobs are written as "token_id:17".'
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, le=MAX_TOKEN_ID, description="Keep so many tokens; -1: what fits."
    )
    truncation_side: Literal["left", "right"] = Field(
        "left", description="Where a prompt is cut: left keeps its end, right its beginning."
    )
    memory: MemoryFields | None = Field(None, description="Extended Mind memories to attend to.")
    cache_salt: CacheSalt = None
    priority: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Lower is served first.")
    use_speculative: bool | None = Field(None, description="false never guesses ahead.")
    stream: bool = False
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")

    user: str = Field("", description="Accepted; has no effect.")

    # vLLM's that cannot be honoured here.
    use_beam_search: Annotated[
        bool, BeforeValidator(_no_beams), WithJsonSchema({"type": "boolean", "const": False})
    ] = False
    length_penalty: Unsupported = None
    bad_words: Unsupported = None
    logits_processors: Unsupported = None


class ReportFields(SamplingFields):
    """What is told about the tokens besides their text; names and meanings are vLLM's."""

    logprobs_mode: LogprobsMode | None = Field(
        None,
        description="raw: as the model gave them; processed: of the distribution that was drawn "
        "from. Default: the server's --logprobs-mode. A prompt's are always raw.",
    )
    logprob_token_ids: list[TokenId] = Field(
        default_factory=list,
        max_length=MAX_NAMED_TOKENS,
        description="The alternatives are these tokens, not the likeliest; needs logprobs.",
    )
    return_token_ids: bool = Field(False, description="prompt_token_ids and token_ids.")
    return_weight_versions: bool = Field(
        False,
        description="weight_versions: of the adapter that gave each token, or of the model where "
        "there is none; 0 is as loaded. base_weight_versions: of the model.",
    )
    include_metrics: bool = Field(False, description="Times of this request, in ms.")
    receipt: bool = Field(
        False, description="What each choice was given: cache, chunks, guesses, versions, seed."
    )

    @property
    def both_logprobs(self) -> bool:
        """Whether those of the distribution that was drawn from come beside the others."""
        return False

    def check_named_tokens(self, *, reports: bool, generates: bool) -> None:
        """logprob_token_ids belong to reported log-probabilities of generated tokens."""
        if not self.logprob_token_ids:
            return
        if not reports:
            raise wrong("logprob_token_ids needs logprobs", "logprob_token_ids")
        if not generates:
            raise wrong("nothing is generated that has other tokens", "logprob_token_ids")
