"""A Video as a request gives it: some of its frames, and when they are seen."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_parallm.models.vision.picture import Picture


@dataclass(frozen=True, eq=False, slots=True)
class Video:
    """One video of a request.

    Attributes:
        frames: those that the model is shown, all of one size; one at least.
        times: of each frame, in seconds from the beginning; ascending.
        duration: of the whole video, in seconds.

    Raises:
        ValueError: no frames, frames of several sizes, or another number of times.
    """

    frames: tuple[Picture, ...]
    times: tuple[float, ...]
    duration: float

    def __post_init__(self) -> None:
        if not self.frames or len(self.frames) != len(self.times):
            raise ValueError(f"{len(self.frames)} frames at {len(self.times)} times")
        if len({frame.pixels.shape for frame in self.frames}) > 1:
            raise ValueError("the frames have several sizes")

    @property
    def fps(self) -> float:
        """Frames shown of each second."""
        return len(self.frames) / self.duration if self.duration > 0 else 1.0
