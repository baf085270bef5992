"""Transcripts as OpenAI writes them: json, text, srt, vtt, verbose_json, and events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from mlx_parallm.server.output.responses import json_answer

if TYPE_CHECKING:
    from mlx_parallm.models.audio.segments import Segment
    from mlx_parallm.models.audio.vocabulary import Task


@dataclass(frozen=True, slots=True)
class Transcript:
    """All of a sound's text. duration: of the sound, in seconds; language: its name."""

    task: Task
    language: str
    duration: float
    segments: Sequence[Segment]

    @property
    def text(self) -> str:
        """Of all segments."""
        return text_of(self.segments)

    @property
    def usage(self) -> dict[str, Any]:
        """What it counts as."""
        return {"type": "duration", "seconds": math.ceil(self.duration)}


def text_of(segments: Sequence[Segment]) -> str:
    """Their text, one behind the other."""
    return "".join(segment.text for segment in segments).strip()


def answer(transcript: Transcript, response_format: str) -> Response:
    """A transcript in the format that was asked for."""
    if response_format == "text":
        return Response(transcript.text + "\n", media_type="text/plain; charset=utf-8")
    if response_format == "srt":
        return Response(as_srt(transcript.segments), media_type="text/plain; charset=utf-8")
    if response_format == "vtt":
        return Response(as_vtt(transcript.segments), media_type="text/vtt; charset=utf-8")
    short = {"text": transcript.text, "usage": transcript.usage}
    return json_answer(verbose(transcript) if response_format == "verbose_json" else short)


def verbose(transcript: Transcript) -> dict[str, Any]:
    """With its segments."""
    return {
        "task": transcript.task,
        "language": transcript.language,
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [_segment(at, one) for at, one in enumerate(transcript.segments)],
        "usage": transcript.usage,
    }


def _segment(at: int, segment: Segment) -> dict[str, Any]:
    decoded = segment.decoded
    return {
        "id": at,
        "seek": segment.seek,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": decoded.temperature,
        "avg_logprob": decoded.avg_logprob,
        "compression_ratio": decoded.compression_ratio,
        "no_speech_prob": decoded.no_speech_prob,
    }


def as_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered, with a comma before the milliseconds."""
    spoken = [segment for segment in segments if segment.text.strip()]
    return "".join(
        f"{at}\n{_span(segment, ',')}\n{_line(segment)}\n\n"
        for at, segment in enumerate(spoken, start=1)
    )


def as_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT."""
    spoken = [segment for segment in segments if segment.text.strip()]
    cues = (f"{_span(segment, '.')}\n{_line(segment)}\n\n" for segment in spoken)
    return "WEBVTT\n\n" + "".join(cues)


def _line(segment: Segment) -> str:
    """Its text in one line, without what separates times."""
    return " ".join(segment.text.split()).replace("-->", "->")


def _span(segment: Segment, mark: str) -> str:
    return f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}"


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
