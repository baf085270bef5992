"""Videos: every family that takes them says what mlx-vlm's own model says, in any company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.vision.families import FAMILIES
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from mlx_parallm.models.vision.video_layout import Frames
from tests.conftest import assert_no_leaks
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import (
    PICTURE,
    VIDEO,
    engine_of,
    sequence_of,
    vision_of,
    with_placeholders,
)
from tests.models.vision import oracle
from tests.models.vision.tiny_vision import SPECS, picture, video

TOLERANCE = 1e-4
TEXT = f"user: Watch {VIDEO} What happens?\nassistant:"
SCORED = {"ignore_eos": True, "logprobs": 0, "prompt_logprobs": 0}
# What stands for a video of 5 frames at 2 a second, where each is a picture.
WRITTEN = {
    "clocked": " ".join(f"00:{n:02d} {PICTURE}" for n in (0, 0, 1, 1, 2)),
    "numbered": "\n".join(f"Frame{n}: {PICTURE}" for n in range(1, 6)),
    "told_with_times": (
        "You are provided the following series of five frames from a 0:00:02 [H:MM:SS] video.\n"
        + "".join(f"\nFrame from 00:{n:02d}:{PICTURE}" for n in (0, 0, 1, 1, 2))
        + "\n\n"
    ),
}
TAKING = sorted(name for name, family in FAMILIES.items() if family.video and name in SPECS)

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture(scope="module", params=TAKING)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def expected(
    engine: Engine, family: str, monkeypatch: pytest.MonkeyPatch, text: str, shown: list[Video]
) -> oracle.Answer:
    """What mlx-vlm says of videos."""
    processor, layout = vision_of(engine)._processor, FAMILIES[family].video
    if not isinstance(layout, Frames):
        filled = with_placeholders(family, text)
        return oracle.answer(family, processor, filled, [], 8, shown)
    for name, value in layout.settings.items():
        monkeypatch.setattr(processor.image_processor, name, value)
    filled = with_placeholders(family, text.replace(VIDEO, WRITTEN[layout.write.__name__]))
    frames = [frame for one in shown for frame in one.frames]
    found = oracle.answer(family, processor, filled, frames, 8)
    monkeypatch.undo()
    return found


def check(driver: Driver, sequence: Sequence, said: oracle.Answer) -> None:
    assert driver.end(sequence).error is None
    assert sequence.prompt == said.ids
    scores = [score.logprob for score in driver.prompt_logprobs(sequence) or () if score]
    assert np.abs(np.array(scores) - said.scores).max() < TOLERANCE
    assert driver.tokens(sequence) == said.tokens
    logprobs = [score.logprob for score in driver.logprobs(sequence)]
    assert np.abs(np.array(logprobs) - said.logprobs).max() < TOLERANCE


def test_prompts_and_answers_are_the_oracles(
    engine: Engine, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"user: First {VIDEO} and then {VIDEO} What changed?\nassistant:"
    shown = [video(1), video(2)]
    sequence = sequence_of(engine, family, text, shown, **SCORED)
    driver = Driver(engine).run(sequence)
    check(driver, sequence, expected(engine, family, monkeypatch, text, shown))
    assert_no_leaks(engine)


def test_another_order_of_frames_is_another_video(engine: Engine, family: str) -> None:
    one = video(3)
    turned = Video(one.frames[::-1], one.times, one.duration)
    driver = Driver(engine)
    rows = [sequence_of(engine, family, TEXT, [shown], **SCORED) for shown in (one, turned)]
    driver.run(*rows)
    first, second = ([s.logprob for s in driver.logprobs(row)] for row in rows)
    assert np.abs(np.array(first) - second).max() > 10 * TOLERANCE


QWEN3 = "qwen3_vl"
PIECES = (
    f"user: {PICTURE} then {VIDEO}, {PICTURE}. What?\nassistant:",
    f"user: {VIDEO}{VIDEO} and {PICTURE}\nassistant:",
    f"user: {PICTURE}{PICTURE}\nassistant:",
)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Engine]:
    made = engine_of(QWEN3)
    yield made
    made.stop()


def shown_in(text: str, seed: int) -> list[Picture | Video]:
    """A picture or a video for each place."""
    marks = [part.split("}")[0] for part in text.split("{")[1:]]
    return [
        picture(seed + place) if mark == "picture" else video(seed + place, frames=3 + place)
        for place, mark in enumerate(marks)
    ]


@pytest.mark.parametrize("text", PIECES[:2])
def test_pictures_and_videos_in_one_chat(mixed: Engine, text: str) -> None:
    shown = shown_in(text, 10)
    sequence = sequence_of(mixed, QWEN3, text, shown, **SCORED)
    driver = Driver(mixed).run(sequence)
    pictures = [one for one in shown if isinstance(one, Picture)]
    videos = [one for one in shown if isinstance(one, Video)]
    filled, processor = with_placeholders(QWEN3, text), vision_of(mixed)._processor
    check(driver, sequence, oracle.answer(QWEN3, processor, filled, pictures, 8, videos))


@pytest.mark.parametrize("name", ["qwen2_5_vl", QWEN3, "smolvlm"])
def test_rows_with_videos_are_rows(name: str) -> None:
    """Beside others, in small chunks, from the prefix cache and with few rows: as alone."""
    texts = [TEXT, "user: No picture.\nassistant:", *PIECES]
    settings = {"ignore_eos": True, "logprobs": 0, "max_tokens": 6}

    def rows(engine: Engine) -> list[Sequence]:
        twice = [(text, seed) for seed in (20, 30) for text in texts] + [(TEXT, 20)]
        return [
            sequence_of(engine, name, text, shown_in(text, seed), **settings)
            for text, seed in twice
        ]

    plain = engine_of(name, prefix_cache_memory=0)
    alone = []
    try:
        for sequence in rows(plain):
            driver = Driver(plain).run(sequence)
            alone.append((driver.tokens(sequence), driver.logprobs(sequence)))
    finally:
        plain.stop()
    engine = engine_of(name, max_batch_size=4, prefill_chunk=7)
    try:
        for _ in range(2):
            batch, driver = rows(engine), Driver(engine)
            driver.run(*batch)
            for sequence, (tokens, logprobs) in zip(batch, alone, strict=True):
                assert driver.end(sequence).error is None
                assert driver.tokens(sequence) == tokens
                found = [score.logprob for score in driver.logprobs(sequence)]
                assert np.abs(np.array(found) - [s.logprob for s in logprobs]).max() < 1e-3
        assert engine.stats().cached_tokens > 0
        assert engine.runner.encoder is not None and engine.runner.encoder.found > 0
        assert_no_leaks(engine)
    finally:
        engine.stop()


def test_the_same_frames_at_another_speed_are_another_prefix() -> None:
    """Qwen2.5's positions are in seconds: pages of one speed must not serve the other."""
    name = "qwen2_5_vl"
    said: dict[tuple[bool, float], np.ndarray] = {}
    for cached in (False, True):
        engine = engine_of(name, prefix_cache_memory=(8 << 20) if cached else 0)
        try:
            for fps in (2.0, 0.5):
                shown = [video(40, frames=12, fps=fps)]
                sequence = sequence_of(engine, name, TEXT, shown, ignore_eos=True, logprobs=0)
                driver = Driver(engine).run(sequence)
                said[cached, fps] = np.array([s.logprob for s in driver.logprobs(sequence)])
        finally:
            engine.stop()
    assert np.abs(said[False, 2.0] - said[False, 0.5]).max() > 1e-3, "or nothing is shown here"
    for fps in (2.0, 0.5):
        assert np.abs(said[True, fps] - said[False, fps]).max() < TOLERANCE
