"""Segments: the tokens of a window, cut at its timestamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_parallm.models.audio.log_mel import FRAMES_PER_SECOND
from mlx_parallm.models.audio.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one attempt at a window gave.

    Attributes:
        tokens: timestamps included, without the end.
        compression_ratio: of the text; repetitive texts are above 2.4.
    """

    tokens: tuple[int, ...]
    temperature: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a transcript, as OpenAI's verbose_json has it. Times are seconds."""

    seek: int
    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    decoded: Decoded


def segments_of(
    decoded: Decoded, vocabulary: Vocabulary, precision: float, seek: int, frames: int
) -> tuple[list[Segment], int]:
    """The segments of a window, and the frame at which the next one begins.

    Source: transcribe() of openai/whisper.

    Args:
        precision: seconds from timestamp to timestamp.
        seek, frames: where the window begins, and how much of it is sound.
    """
    tokens, first = decoded.tokens, vocabulary.first_timestamp
    offset = seek / FRAMES_PER_SECOND
    stamps = [token >= first for token in tokens]
    ends_open = stamps[-2:] == [False, True]
    cuts = [at for at in range(1, len(tokens)) if stamps[at - 1] and stamps[at]]

    def segment(start: float, end: float, part: Sequence[int]) -> Segment:
        text = vocabulary.decode(part)
        if start == end or not text.strip():
            text, part = "", ()
        return Segment(seek, start, end, text, tuple(part), decoded)

    if not cuts:
        last = next((token for token in reversed(tokens) if token >= first), first)
        seconds = (last - first) * precision if last != first else frames / FRAMES_PER_SECOND
        return [segment(offset, offset + seconds, tokens)], seek + frames
    if ends_open:
        cuts.append(len(tokens))
    found = []
    for begin, end in zip([0, *cuts], cuts, strict=False):
        part = tokens[begin:end]
        times = [offset + (token - first) * precision for token in (part[0], part[-1])]
        found.append(segment(times[0], times[1], part))
    if ends_open:
        return found, seek + frames
    last_frame = round((tokens[cuts[-1] - 1] - first) * precision * FRAMES_PER_SECOND)
    return found, seek + last_frame
