"""Transcripts: against torch, against mlx-audio's own loop, alone and together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.engine.audio.transcriber import MOST_ROWS, Transcriber
from mlx_parallm.engine.audio.transcription import Transcription, Wish
from mlx_parallm.errors import NotANumberError, ParallmError, SequenceError
from mlx_parallm.models.audio.loading import load_whisper
from mlx_parallm.models.audio.log_mel import log_mel
from mlx_parallm.models.audio.segments import Segment
from mlx_parallm.models.audio.whisper import Encoding, Step, Whisper
from tests.models.audio.tiny_whisper import FIRST_TIMESTAMP, QUICK, make_tiny_whisper, melody
from tests.models.audio.torch_figures import FIGURES, SECONDS, SEEDS

ONCE = Wish(language="en", temperatures=(0.0,))


@dataclass
class Told:
    """What was said of one sound."""

    segments: list[Segment] = field(default_factory=list)
    ends: list[ParallmError | None] = field(default_factory=list)
    job: Transcription | None = None

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        return [segment.decoded.tokens for segment in self.segments]


def begin(
    transcriber: Transcriber, whisper: Whisper, samples: np.ndarray, wish: Wish = ONCE
) -> Told:
    told = Told()
    mel = log_mel(samples, whisper.mels)
    told.job = Transcription(whisper, mel, wish, told.segments.extend, told.ends.append)
    transcriber.add(told.job)
    return told


def run(transcriber: Transcriber) -> None:
    while transcriber.has_work:
        transcriber.work(0)


def transcribe(whisper: Whisper, sounds: Sequence[np.ndarray], wish: Wish = ONCE) -> list[Told]:
    transcriber = Transcriber()
    found = [begin(transcriber, whisper, samples, wish) for samples in sounds]
    run(transcriber)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_whisper(tmp_path_factory.mktemp("whisper") / "0", sizes=QUICK)


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Whisper:
    return load_whisper(str(folder))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_greedy_transcript_is_that_of_torch(tmp_path: Path, seed: int) -> None:
    expected = json.loads(FIGURES.read_text())[seed]["said"]
    whisper = load_whisper(str(make_tiny_whisper(tmp_path / "whisper", seed=seed)))
    told = begin(transcriber := Transcriber(), whisper, melody(SECONDS, seed))
    # Behind the last whole segment transformers looks again, as we do, at zeros where we hear
    # silence; so the first window's segments are compared.
    while not told.segments:
        transcriber.work(0)
    first = [token for segment in told.segments if segment.seek == 0 for token in segment.tokens]
    assert len(first) > 5
    assert first == expected[: len(first)]


def test_windows_are_those_of_mlx_audio(
    folder: Path, whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop over windows, with what it does otherwise than OpenAI put right: which
    timestamps may follow, and that there is silence behind a sound.
    """
    sound = melody(41.5, 5)
    model = _of_mlx_audio(folder, whisper, sound, monkeypatch)
    theirs = model.generate(sound, temperature=(0.0,), fp16=False, language="en")
    [ours] = transcribe(whisper, [sound])
    assert len({segment.seek for segment in ours.segments}) > 1
    assert [tuple(one["tokens"]) for one in theirs.segments] == [s.tokens for s in ours.segments]
    for one, segment in zip(theirs.segments, ours.segments, strict=True):
        assert one["start"] == pytest.approx(segment.start)
        assert one["end"] == pytest.approx(segment.end)
        assert one["text"] == segment.text
        for name in ("avg_logprob", "no_speech_prob", "compression_ratio"):
            value = getattr(segment.decoded, name)
            assert one[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def _of_mlx_audio(
    folder: Path, whisper: Whisper, sound: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> Any:
    from mlx_audio.stt.models.whisper import decoding
    from mlx_audio.stt.models.whisper import whisper as theirs
    from transformers import WhisperTokenizer

    class Rules(decoding.LogitFilter):  # type: ignore[misc]
        def __init__(self, *_: Any) -> None:
            pass

        def apply(self, logits: mx.array, tokens: mx.array) -> mx.array:
            row: list[int] = np.array(tokens)[0].tolist()
            said = row[row.index(whisper.vocabulary.start) + 3 :]
            scores = whisper.rules.log_probabilities(np.array(logits[0]), said)
            return mx.array(scores)[None]

    floor = float(log_mel(sound, whisper.mels).min())

    def with_silence(mel: mx.array, length: int, axis: int) -> mx.array:
        return mx.pad(mel, [(0, length - mel.shape[0]), (0, 0)], constant_values=floor)

    monkeypatch.setattr(decoding, "ApplyTimestampRules", Rules)
    monkeypatch.setattr(theirs, "pad_or_trim", with_silence)
    config = json.loads((folder / "config.json").read_text())
    model = theirs.Model(theirs.ModelDimensions.from_dict(config), mx.float32)
    weights = mx.load(str(folder / "model.safetensors"))
    model.load_weights(list(model.sanitize(weights).items()))
    tokenizer = WhisperTokenizer.from_pretrained(str(folder))
    model._processor = type("Processor", (), {"tokenizer": tokenizer})
    return model


def test_sounds_together_are_sounds_alone(whisper: Whisper) -> None:
    """More than there are rows, hot ones, one of two windows."""
    lengths = (2.5, 31.0, *(1.0,) * 7)
    sounds = [melody(length, seed) for seed, length in enumerate(lengths)]
    assert len(sounds) > MOST_ROWS
    wish = Wish(temperatures=(0.7,), seed=5)
    together = transcribe(whisper, sounds, wish)
    for samples, told in zip(sounds[:3], together[:3], strict=True):
        [alone] = transcribe(whisper, [samples], wish)
        assert told.tokens == alone.tokens
        assert told.ends == alone.ends == [None]
        assert told.job is not None and alone.job is not None
        assert told.job.language == alone.job.language


def test_a_short_sound_does_not_wait_for_a_long_one(whisper: Whisper) -> None:
    transcriber = Transcriber()
    long = begin(transcriber, whisper, melody(95.0))
    short = begin(transcriber, whisper, melody(1.0))
    while not short.ends:
        transcriber.work(0)
    assert long.ends == []
    assert len({segment.seek for segment in long.segments}) <= 2
    run(transcriber)
    assert long.ends == [None]


def test_a_seed_gives_the_same_text_and_another_one_not(whisper: Whisper) -> None:
    def said(seed: int) -> list[tuple[int, ...]]:
        hot = Wish(language="en", temperatures=(1.0,), seed=seed)
        [told] = transcribe(whisper, [melody(3.0)], hot)
        return told.tokens

    first = said(1)
    assert said(1) == first
    assert said(2) != first


def test_a_bad_text_is_tried_again_hotter(tmp_path: Path) -> None:
    """A model that knows nothing: log-probabilities are below -1 at every temperature."""
    blunt = load_whisper(str(make_tiny_whisper(tmp_path / "blunt", sharpness=0.5, sizes=QUICK)))
    [told] = transcribe(blunt, [melody(3.0)], Wish(language="en", temperatures=(0.0, 0.4)))
    assert told.segments[0].decoded.temperature == 0.4
    assert told.segments[0].decoded.avg_logprob < -1


def test_timestamps_come_in_pairs_and_in_order(whisper: Whisper) -> None:
    found = transcribe(whisper, [melody(9.0, seed) for seed in range(3)])
    tokens = [tokens for told in found for tokens in told.tokens]
    assert any(sum(token >= FIRST_TIMESTAMP for token in one) > 2 for one in tokens)
    for one in tokens:
        stamps = [token for token in one if token >= FIRST_TIMESTAMP]
        assert stamps == sorted(stamps)
        assert one[0] >= FIRST_TIMESTAMP


def test_a_prompt_and_a_language_count(whisper: Whisper) -> None:
    words = whisper.vocabulary.encode(" hello there")
    wishes = [ONCE, Wish(language="de", temperatures=(0.0,))]
    wishes.append(Wish(language="en", temperatures=(0.0,), prompt=words))
    texts = [transcribe(whisper, [melody(5.0)], wish)[0].tokens for wish in wishes]
    assert len({str(text) for text in texts}) == 3


class Faulty:
    """A Whisper that fails where it is told to, and is otherwise the one it stands for."""

    def __init__(self, whisper: Whisper, change: Callable[[list[Step]], None]) -> None:
        self._whisper, self._change = whisper, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whisper, name)

    def begin(self, mel: np.ndarray) -> Encoding:
        return self._whisper.begin(mel)

    def decode(self, steps: list[Step]) -> list[np.ndarray]:
        self._change(steps)
        found = self._whisper.decode(steps)
        return [
            logits * np.nan if 13 in step.tokens else logits
            for step, logits in zip(steps, found, strict=True)
        ]


def test_a_fault_stays_with_its_sound(whisper: Whisper, caplog: pytest.LogCaptureFixture) -> None:
    def fail(steps: list[Step]) -> None:
        if any(7 in step.tokens for step in steps):
            raise RuntimeError("a fault")

    faulty: Any = Faulty(whisper, fail)
    transcriber = Transcriber()
    good = begin(transcriber, faulty, melody(3.0))
    bad = begin(transcriber, faulty, melody(3.0, 1), Wish(language="en", prompt=(7,)))
    nan = begin(transcriber, faulty, melody(3.0, 1), Wish(language="en", prompt=(13,)))
    run(transcriber)
    assert type(bad.ends[0]) is SequenceError and bad.segments == []
    assert type(nan.ends[0]) is NotANumberError
    [alone] = transcribe(whisper, [melody(3.0)])
    assert good.ends == [None] and good.tokens == alone.tokens
    assert "a fault" in caplog.text


def test_no_turn_is_longer_than_rows_can_wait(
    whisper: Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks once for a piece of an encoding, and four times for a token."""
    now = 0

    def tick(count: int) -> None:
        nonlocal now
        now += count

    class Slow(Faulty):
        def begin(self, mel: np.ndarray) -> Any:
            encoding = whisper.begin(mel)

            def advance() -> bool:
                tick(1)
                return encoding.advance()

            return SimpleNamespace(advance=advance, heard=encoding.heard)

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("mlx_parallm.engine.audio.transcriber.time", clock)
    slow: Any = Slow(whisper, lambda steps: tick(4))
    transcriber = Transcriber(spare=lambda decoding: 4.0)
    told = [begin(transcriber, slow, melody(1.0, seed)) for seed in range(3)]
    turns = []
    while transcriber.has_work:
        before = now
        transcriber.work(1)
        turns.append(now - before)
    assert max(turns) == 4 and [one.ends for one in told] == [[None]] * 3


def test_who_has_gone_is_left_out_and_nothing_stays(whisper: Whisper) -> None:
    transcriber = Transcriber()
    told = [begin(transcriber, whisper, melody(40.0, seed)) for seed in range(3)]
    for _ in range(3):
        transcriber.work(0)
    for one in told:
        assert one.job is not None
        one.job.cancel()
    run(transcriber)
    assert [one.ends for one in told] == [[None]] * 3
    left = begin(transcriber, whisper, melody(40.0))
    transcriber.work(0)
    transcriber.end_all(error := SequenceError("over"))
    assert not transcriber.has_work and left.ends == [error]
