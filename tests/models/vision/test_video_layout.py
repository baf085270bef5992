"""What is written around the frames of videos."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.models.vision.video_layout import numbered, told_with_times, words_of

FRAME = Picture(np.zeros((2, 2, 3), np.uint8))


def test_numbers_in_words() -> None:
    """As num2words has them, which transformers uses for SmolVLM."""
    words = {
        1: "one",
        13: "thirteen",
        30: "thirty",
        64: "sixty-four",
        100: "one hundred",
        128: "one hundred and twenty-eight",
        999: "nine hundred and ninety-nine",
    }
    assert {number: words_of(number) for number in words} == words


def test_what_stands_for_a_video() -> None:
    video = Video((FRAME, FRAME), (0.0, 75.5), 3725.9)
    assert numbered(video, ["<a>", "<b>"]) == "Frame1: <a>\nFrame2: <b>"
    assert told_with_times(video, ["<a>", "<b>"]) == (
        "You are provided the following series of two frames from a 1:02:05 [H:MM:SS] video.\n"
        "\nFrame from 00:00:<a>\nFrame from 01:15:<b>\n\n"
    )


def test_what_is_no_video() -> None:
    other = Picture(np.zeros((2, 3, 3), np.uint8))
    for frames, times in (((), ()), ((FRAME,), (0.0, 1.0)), ((FRAME, other), (0.0, 1.0))):
        with pytest.raises(ValueError, match="frames"):
            Video(frames, times, 2.0)
