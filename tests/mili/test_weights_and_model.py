"""WeightLoader and Qwen3Model on a tiny checkpoint: its weights, in 8 bits too, and its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from mlx_parallm.errors import (
    InvalidRequestError,
    ModelLoadError,
    NotFoundError,
    UnsupportedError,
)
from mlx_parallm.mili import Qwen3Config, Qwen3Model, WeightLoader
from mlx_parallm.utils import batch_generate
from tests.engine import mock
from tests.models import checkpoints

pytestmark = pytest.mark.usefixtures("no_compile")

CONFIG = Qwen3Config(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=mock.VOCAB,
    max_position_embeddings=mock.CONTEXT,
)
IDS = [[5, 9, 40, 3, 17, 30, 8], [90, 4, 61, 2, 33, 7, 12]]
MATRIX = "model.layers.0.self_attn.q_proj.weight"
VECTOR = "model.norm.weight"


@pytest.fixture(scope="module")
def plain() -> Any:
    """mlx-lm's own model, random."""
    mx.random.seed(3)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(CONFIG.to_dict()))
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    model.load_weights([(name, 3 * weight) for name, weight in weights.items()])
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="module")
def folder(plain: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = dict(tree_flatten(plain.parameters()))
    place = tmp_path_factory.mktemp("qwen3")
    return checkpoints.write(place, CONFIG.to_dict(), weights, shards=2)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Qwen3Model]:
    made = Qwen3Model(CONFIG, WeightLoader(str(folder), CONFIG))
    yield made
    made.close()


def logits_of(plain: Any, ids: list[int]) -> np.ndarray:
    return np.array(plain(mx.array([ids]))[0])


# Weights


def test_weights_by_name(plain: Any, folder: Path) -> None:
    loader = WeightLoader(str(folder), CONFIG, dtype=mx.float16)
    weights = loader.load_from_safetensors()
    right = dict(tree_flatten(plain.parameters()))
    assert set(weights) == set(right) == set(loader.names)
    for name, weight in weights.items():
        assert mx.array_equal(weight, right[name].astype(mx.float16))
    assert loader.get_weight_as_numpy(MATRIX).dtype == np.float16
    same = WeightLoader("elsewhere", CONFIG).load_from_huggingface(str(folder))
    assert mx.array_equal(same[MATRIX], right[MATRIX])
    half = WeightLoader(str(folder), dtype=mx.bfloat16)
    half.load_from_safetensors()
    assert half.get_weight_as_numpy(VECTOR).dtype == np.float32


def test_fp8_is_the_nearest_of_e4m3(folder: Path) -> None:
    loader = WeightLoader(str(folder), CONFIG)
    before = {n: np.array(w, np.float64) for n, w in loader.load_from_safetensors().items()}
    held = loader.quantize_to_fp8()
    assert set(loader.names) == set(before)
    assert np.array_equal(held[VECTOR], before[VECTOR])
    sizes = np.arange(128)
    # Sign, 4 bits of exponent (bias 7), 3 bits of mantissa; 127 is no number.
    exponent, mantissa = sizes >> 3, sizes & 7
    table = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)[:127]
    for name, weight in before.items():
        if weight.ndim < 2:
            continue
        assert held[name].dtype == mx.uint8 and held[name].shape == weight.shape
        scale = float(np.array(held[name + ".scale"]))
        assert scale == pytest.approx(np.abs(weight).max() / 448)
        nearest = np.abs(np.abs(weight / scale)[..., None] - table).min(axis=-1)
        off = np.abs(loader.get_weight_as_numpy(name) / scale - weight / scale)
        np.testing.assert_allclose(off, nearest, atol=1e-3)
    assert sum(w.nbytes for w in held.values()) < 0.3 * sum(w.size * 4 for w in before.values())
    assert set(loader.quantize_to_fp8()) == set(held)


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        WeightLoader("./nowhere").load_from_safetensors()
    with pytest.raises(ModelLoadError, match="safetensors"):
        WeightLoader(str(tmp_path)).load_from_safetensors()
    (tmp_path / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(ModelLoadError, match="not readable"):
        WeightLoader(str(tmp_path)).load_from_safetensors()
    with pytest.raises(ModelLoadError, match="no weights are loaded"):
        WeightLoader(str(folder)).quantize_to_fp8()
    with pytest.raises(NotFoundError, match="nobody"):
        WeightLoader(str(folder)).get_weight("nobody")
    with pytest.raises(UnsupportedError, match="quantum"):
        WeightLoader(str(folder), device="quantum")
    with pytest.raises(ModelLoadError):
        Qwen3Model(Qwen3Config(vocab_size=7), WeightLoader(str(folder)))


# The model


def test_forward_is_mlx_lms(model: Qwen3Model, plain: Any) -> None:
    logits, _ = model.forward(IDS)
    assert logits.shape == (2, 7, mock.VOCAB)
    for row, ids in zip(np.array(logits), IDS, strict=True):
        np.testing.assert_allclose(row, logits_of(plain, ids), atol=1e-4)


@pytest.mark.parametrize("parts", [(3, 4), (1, 1, 5), (6, 1)])
def test_forward_in_parts_with_its_cache(
    model: Qwen3Model, plain: Any, parts: tuple[int, ...]
) -> None:
    cache, found, at = None, [], 0
    for width in parts:
        logits, cache = model.forward([row[at : at + width] for row in IDS], kv_cache=cache)
        found.append(np.array(logits))
        at += width
    for row, ids in zip(np.concatenate(found, axis=1), IDS, strict=True):
        np.testing.assert_allclose(row, logits_of(plain, ids), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: Qwen3Model, plain: Any, side: str) -> None:
    """A shorter row among longer ones, and what comes behind it."""
    short, long, behind = IDS[0][:4], IDS[1], [11, 12]
    pads, ones = [0] * 3, [1] * 4
    padded = pads + short if side == "left" else short + pads
    mask = pads + ones if side == "left" else ones + pads
    logits, cache = model.forward([padded, long], [mask, [1] * 7])
    mine = np.array(logits)[0][np.array(mask, bool)]
    np.testing.assert_allclose(mine, logits_of(plain, short), atol=1e-4)
    whole = [[*mask, 1, 1], [1] * 9]
    logits, _ = model.forward([behind, behind], whole, cache)
    for row, ids in zip(np.array(logits), (short, long), strict=True):
        np.testing.assert_allclose(row, logits_of(plain, ids + behind)[-2:], atol=1e-4)


def test_generate_is_the_engines(model: Qwen3Model) -> None:
    answer = model.generate("What is machine learning?", max_tokens=20, temperature=0.0)
    prompts = ["What is machine learning?", "another"]
    together = batch_generate(model.model, model.tokenizer, prompts, max_tokens=20)
    assert answer == together[0]
    hot = {model.generate("a", 20, temperature=1.5, seed=seed) for seed in range(4)}
    assert len(hot) > 1
    with pytest.raises(InvalidRequestError, match="temperature"):
        model.generate("a", temperature=-1)


def test_forward_refuses(model: Qwen3Model) -> None:
    wrong: list[Any] = [[1, 2], [[]], [[0.5]], [[mock.VOCAB]], [[-1]]]
    for ids in wrong:
        with pytest.raises(InvalidRequestError) as error:
            model.forward(ids)
        assert error.value.param == "input_ids"
    for mask in ([[1, 0, 1]], [[0, 0, 0]], [[1, 1]], [[1, 1, 1]] * 2):
        with pytest.raises(InvalidRequestError) as error:
            model.forward([[1, 2, 3]], mask)
        assert error.value.param == "attention_mask"
    _, cache = model.forward([[1, 2]])
    with pytest.raises(InvalidRequestError) as error:
        model.forward([[1, 2], [3, 4]], kv_cache=cache)
    assert error.value.param == "kv_cache"


def test_weights_in_8_bits_say_nearly_the_same(folder: Path, plain: Any) -> None:
    config = Qwen3Config.from_pretrained(str(folder))
    assert config == Qwen3Config.from_dict(json.loads((folder / "config.json").read_text()))
    loader = WeightLoader(str(folder), config)
    loader.load_from_safetensors()
    loader.quantize_to_fp8()
    small = Qwen3Model(config, loader)
    try:
        found, right = np.array(small.forward([IDS[0]])[0])[0], logits_of(plain, IDS[0])
        cosine = (found * right).sum() / np.linalg.norm(found) / np.linalg.norm(right)
        assert 0.98 < cosine < 0.99999
    finally:
        small.close()
