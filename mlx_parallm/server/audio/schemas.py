"""POST /v1/audio/transcriptions and /v1/audio/translations: the fields of their forms."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_parallm.server.schemas.base import RequestModel, Unsupported, unsupported, wrong

Granularity = Literal["segment", "word"]
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class TranslationRequest(RequestModel):
    """A sound to be written down in English. A form has texts only: numbers are read from them."""

    model_config = ConfigDict(strict=False)

    model: str = Field("", description="The name of --transcription-model; empty is that one.")
    prompt: str = Field(
        "", max_length=20_000, description="A text before it: names, spelling, style."
    )
    response_format: Format = Field("json", description="How the text is written.")
    temperature: float = Field(
        0.0, ge=0, le=1, description="0 begins with the likeliest text and rises where it is bad."
    )
    seed: int | None = Field(
        None, ge=-(2**63), lt=2**63, description="Draws the same; only this server's."
    )


class TranscriptionRequest(TranslationRequest):
    """A sound to be written down in its own language."""

    language: str = Field("", description="Its code or English name; empty: the model hears it.")
    timestamp_granularities: list[Granularity] = Field(
        default_factory=lambda: list[Granularity](("segment",)),
        alias="timestamp_granularities[]",
        description="Of verbose_json; words are not supported.",
    )
    stream: bool = Field(False, description="Server-sent events, one for each window of 30 s.")
    include: Unsupported = Field(None, alias="include[]")
    chunking_strategy: Unsupported = None
    known_speaker_names: Unsupported = Field(None, alias="known_speaker_names[]")
    known_speaker_references: Unsupported = Field(None, alias="known_speaker_references[]")

    @model_validator(mode="after")
    def _check_together(self) -> TranscriptionRequest:
        given = "timestamp_granularities" in self.model_fields_set
        if "word" in self.timestamp_granularities:
            raise unsupported("words have no times here", "timestamp_granularities[]")
        if given and self.response_format != "verbose_json":
            raise wrong("needs response_format verbose_json", "timestamp_granularities[]")
        if self.stream and self.response_format != "json":
            raise wrong("a stream has response_format json", "response_format")
        return self


class TranscriptionResponse(BaseModel):
    """json has text and usage only."""

    text: str
    usage: dict[str, str | int]
    task: str | None = None
    language: str | None = None
    duration: float | None = None
    segments: list[dict[str, object]] | None = None
