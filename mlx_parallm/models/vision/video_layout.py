"""How a family is shown a video: as pictures with text between them, or as temporal patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from mlx_parallm.models.vision.video import Video

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True, slots=True)
class Frames:
    """Each frame is a picture.

    Attributes:
        write: what stands for a video, of it and of what stands for each of its frames.
        settings: attributes of the image processor while it works on a frame.
    """

    write: Callable[[Video, Sequence[str]], str]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TemporalPatches:
    """The tower takes a few frames at once; each such group has a grid of features.

    Attributes:
        placeholder: what the chat template writes for a video.
        timed: what a group stands for is marked, and its time is written before it. Otherwise
            all groups are one grid in time, height and width.
        by_seconds: the steps of that grid in time are seconds times the model's
            `tokens_per_second`; otherwise each step is one position.
    """

    placeholder: str
    timed: bool = False
    by_seconds: bool = False


VideoLayout = Frames | TemporalPatches


def numbered(video: Video, frames: Sequence[str]) -> str:
    """As InternVL is trained: transformers' processing_internvl.py."""
    return "\n".join(f"Frame{place}: {frame}" for place, frame in enumerate(frames, 1))


def clocked(video: Video, frames: Sequence[str]) -> str:
    """As Gemma 4 is trained: transformers' processing_gemma4.py."""
    return " ".join(
        f"{int(time // 60):02d}:{int(time % 60):02d} {frame}"
        for time, frame in zip(video.times, frames, strict=True)
    )


def told_with_times(video: Video, frames: Sequence[str]) -> str:
    """As SmolVLM is trained: transformers' processing_smolvlm.py."""
    intro = (
        f"You are provided the following series of {words_of(len(frames))} frames from a "
        f"{timedelta(seconds=int(video.duration))} [H:MM:SS] video.\n"
    )
    shown = (
        f"\nFrame from {int(time // 60):02d}:{int(time % 60):02d}:{frame}"
        for time, frame in zip(video.times, frames, strict=True)
    )
    return intro + "".join(shown) + "\n\n"


def words_of(number: int) -> str:
    """An English number below 1,000, in words."""
    if number < len(_ONES):
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {words_of(rest)}" if rest else "")
