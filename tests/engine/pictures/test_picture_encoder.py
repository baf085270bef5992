"""Pictures are computed between steps, in pieces, once, and their faults are their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.forward.picture_encoder import PictureEncoder
from mlx_parallm.engine.sequence import FinishReason, Sequence
from mlx_parallm.errors import SequenceError
from mlx_parallm.models.vision.prepared import PreparedPicture
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import PICTURE, engine_of, sequence_of
from tests.models.vision.tiny_vision import picture

FAMILY = "qwen3_vl"
TEXT = f"user: {PICTURE} What?\nassistant:"

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    made = engine_of(FAMILY, prefix_cache_memory=0)
    yield made
    made.stop()


@pytest.fixture
def encoder(engine: Engine) -> PictureEncoder:
    assert engine.runner.encoder is not None
    return engine.runner.encoder


def asking(engine: Engine, seed: int, **settings: Any) -> Sequence:
    return sequence_of(engine, FAMILY, TEXT, [picture(seed)], ignore_eos=True, **settings)


def test_equal_pictures_are_computed_once(engine: Engine, encoder: PictureEncoder) -> None:
    before = encoder.encoded
    driver = Driver(engine)
    rows = [asking(engine, 100) for _ in range(4)]
    driver.run(*rows)
    assert encoder.encoded == before + 1
    driver.run(asking(engine, 100))
    assert encoder.encoded == before + 1, "a later request found it"
    assert len({tuple(driver.tokens(row)) for row in rows}) == 1


def test_rows_decode_between_the_pieces_of_a_picture(
    engine: Engine, encoder: PictureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sequence_of(engine, FAMILY, "user: Say much.\nassistant:", [], max_tokens=64)
    text.params = type(text.params)(max_tokens=96, temperature=0.0, ignore_eos=True)
    driver, left, said = Driver(engine), [], []
    begin, work = encoder.tower.begin, encoder.work

    def seen_work(decoding: int) -> list[tuple[Sequence, Exception]]:
        said.append(len(driver.tokens(text)))
        return work(decoding)

    def seen_begin(prepared: PreparedPicture) -> Any:
        encoding = begin(prepared)
        left.append(len(encoding._left))
        return encoding

    monkeypatch.setattr(encoder, "work", seen_work)
    monkeypatch.setattr(encoder, "spare", lambda decoding: 0.0 if decoding else None)
    monkeypatch.setattr(encoder.tower, "begin", seen_begin)
    driver.at_step(3, lambda: driver.submit(asking(engine, 101)))
    driver.run(text)
    assert left[0] > 6, "three blocks, the features, those of two layers, and what is in blocks"
    assert len(said) == left[0], "one piece at a time"
    assert said == sorted(set(said)), "each step between them gave the text row a token"


def test_a_fault_stays_with_its_picture(
    engine: Engine, encoder: PictureEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asking(engine, 102)
    assert broken.media is not None
    key, begin = broken.media.spans[0].picture.key, encoder.tower.begin

    def choke(prepared: PreparedPicture) -> Any:
        if prepared.key == key:
            raise ValueError("cannot be computed")
        return begin(prepared)

    monkeypatch.setattr(encoder.tower, "begin", choke)
    well, text = asking(engine, 103), sequence_of(engine, FAMILY, "user: Hi\nassistant:", [])
    driver = Driver(engine).run(broken, well, text)
    assert driver.end(broken).finish_reason is FinishReason.ERROR
    assert isinstance(driver.end(broken).error, SequenceError)
    assert driver.end(well).error is None and driver.end(text).error is None
    assert not encoder.has_work
    monkeypatch.undo()
    again = asking(engine, 102)
    assert Driver(engine).run(again).end(again).error is None


def test_nobody_waits_for_the_picture_of_a_client_that_left(
    engine: Engine, encoder: PictureEncoder
) -> None:
    before = encoder.encoded
    gone = asking(engine, 104)

    def come_and_go() -> None:
        engine.submit([gone], lambda _: None)
        engine.abort([gone.id])

    engine.call(come_and_go).result()
    other = asking(engine, 105)
    Driver(engine).run(other)
    assert encoder.encoded == before + 1
    assert not encoder.has_work


def test_kept_features_have_a_bound(engine: Engine, encoder: PictureEncoder) -> None:
    def limit(most: int) -> int:
        encoder.max_bytes = most
        return encoder.nbytes

    engine.call(lambda: limit(1 << 30)).result()
    Driver(engine).run(asking(engine, 106))
    one = 3 * 4 * 32 * 4  # four features and two deeper ones of 32 floats each
    engine.call(lambda: limit(3 * one)).result()
    Driver(engine).run(*(asking(engine, seed) for seed in range(107, 113)))
    assert engine.call(lambda: encoder.nbytes).result() <= 3 * one
