"""Whisper's forward against figures of transformers on torch; see torch_figures.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.audio.loading import load_whisper
from mlx_parallm.models.audio.log_mel import WINDOW_FRAMES, log_mel
from mlx_parallm.models.audio.whisper import DecoderRow, KeysValues, Step, Whisper
from tests.models.audio.tiny_whisper import make_tiny_whisper, melody
from tests.models.audio.torch_figures import FIGURES, PLACES, SECONDS, SEEDS, TOKENS

EXPECTED: list[dict[str, Any]] = json.loads(FIGURES.read_text())


@cache
def heard_by(whisper: Whisper, seed: int) -> list[KeysValues]:
    """What the decoder hears of a melody; nothing changes it."""
    encoding = whisper.begin(log_mel(melody(SECONDS, seed), whisper.mels)[:WINDOW_FRAMES])
    while not encoding.advance():
        pass
    return encoding.heard


@pytest.fixture(scope="module")
def whispers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Whisper]]:
    """One for each seed."""
    folder = tmp_path_factory.mktemp("whispers")
    yield [load_whisper(str(make_tiny_whisper(folder / str(s), seed=s))) for s in SEEDS]
    heard_by.cache_clear()


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_encodings_are_those_of_torch(whispers: list[Whisper], seed: int) -> None:
    whisper, expected = whispers[seed], EXPECTED[seed]
    heard = heard_by(whisper, seed)
    keys = np.array(heard[0][0].transpose(0, 2, 1, 3).reshape(1500, -1))
    np.testing.assert_allclose(keys[::100, :4], expected["keys"], atol=1e-4)
    [logits] = whisper.decode([Step(DecoderRow(heard), TOKENS, range(len(TOKENS)))])
    np.testing.assert_allclose(logits[:, list(PLACES)], expected["logits"], atol=1e-3)
    assert logits.argmax(-1).tolist() == expected["best"]


def test_rows_of_any_length_decode_together_as_alone(whispers: list[Whisper]) -> None:
    whisper = whispers[0]
    heard = [heard_by(whisper, seed) for seed in (0, 1)]

    def steps(rows: list[DecoderRow]) -> list[list[Step]]:
        first, second = rows
        return [
            [Step(first, TOKENS[:3], (0, 2)), Step(second, TOKENS, (6,))],
            [Step(first, TOKENS[3:4], (0,)), Step(second, (77,), (0,))],
        ]

    together = [whisper.decode(one) for one in steps([DecoderRow(each) for each in heard])]
    alone_steps = steps([DecoderRow(each) for each in heard])
    alone = [[whisper.decode([step])[0] for step in one] for one in alone_steps]
    for batch, singles in zip(together, alone, strict=True):
        for ours, single in zip(batch, singles, strict=True):
            np.testing.assert_allclose(ours, single, atol=1e-4)


def test_one_token_after_the_other_is_all_at_once(whispers: list[Whisper]) -> None:
    whisper, row = whispers[1], DecoderRow(heard_by(whispers[1], 1))
    [at_once] = whisper.decode([Step(DecoderRow(row.heard), TOKENS, range(len(TOKENS)))])
    by_one = [whisper.decode([Step(row, (token,), (0,))])[0][0] for token in TOKENS]
    np.testing.assert_allclose(np.stack(by_one), at_once, atol=1e-4)


def test_the_text_of_a_special_token_is_text(whispers: list[Whisper]) -> None:
    vocabulary = whispers[0].vocabulary
    ids = vocabulary.encode(" say <|endoftext|> and <|en|>")
    assert max(ids) < vocabulary.end
    assert vocabulary.decode(ids) == " say <|endoftext|> and <|en|>"


def test_half_precision_and_packed_weights(tmp_path: Path, whispers: list[Whisper]) -> None:
    """A checkpoint in mlx-audio's own format, packed, is nearly the plain one."""
    folder = make_tiny_whisper(tmp_path / "packed")
    _pack(folder)
    packed, plain = load_whisper(str(folder), "float32"), whispers[0]
    heard = heard_by(packed, 0)
    [ours] = packed.decode([Step(DecoderRow(heard), TOKENS, (6,))])
    [theirs] = plain.decode([Step(DecoderRow(heard_by(plain, 0)), TOKENS, (6,))])
    assert np.corrcoef(ours[0], theirs[0])[0, 1] > 0.98


def _pack(folder: Path) -> None:
    from mlx import nn
    from mlx.utils import tree_flatten
    from mlx_audio.stt.models.whisper.whisper import Model, ModelDimensions

    config = json.loads((folder / "config.json").read_text())
    model = Model(ModelDimensions.from_dict(config), mx.float16)
    weights = mx.load(str(folder / "model.safetensors"))
    model.load_weights(list(model.sanitize(weights).items()))
    nn.quantize(model, group_size=32, bits=8)
    found: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), found)
    own = vars(model.dims) | {"quantization": {"group_size": 32, "bits": 8}}
    (folder / "config.json").write_text(json.dumps(own | {"model_type": "whisper"}))


def test_what_is_no_whisper_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a Whisper, not 'llama'"):
        load_whisper("name=bundled")
    folder = make_tiny_whisper(tmp_path / "cut")
    (folder / "vocab.json").unlink()
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        load_whisper(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no \*\.safetensors"):
        load_whisper(str(folder))
