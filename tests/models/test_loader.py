"""Folders as they come: shards, tied heads, and weights that are packed while loading."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models import loader
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.quantize import QUANTIZATIONS, check_cuda_shapes
from mlx_parallm.models.sources.progress import LoadProgress, watcher
from mlx_parallm.options.loading import load_settings
from mlx_parallm.settings import SettingsError
from tests.engine import mock
from tests.engine.driver import Driver, greedy, oracle
from tests.models import checkpoints

IDS = mx.array([[5, 6, 7, 80, 90, 7]])


def _qwen3(**own: Any) -> tuple[dict[str, Any], qwen3.Model]:
    config = {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": mock.VOCAB,
        "max_position_embeddings": mock.CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": mock.EOS,
    } | own
    mx.random.seed(3)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return config, model


def _saved(folder: Path, shards: int = 1, **own: Any) -> tuple[str, qwen3.Model]:
    config, model = _qwen3(**own)
    weights = dict(tree_flatten(model.parameters()))
    return str(checkpoints.write(folder, config, weights, shards)), model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_qwen3_folders(
    make_engine: Callable[..., Engine], tmp_path: Path, tied: bool, shards: int
) -> None:
    path, model = _saved(tmp_path, shards, tie_word_embeddings=tied)
    assert (Path(path) / "model.safetensors.index.json").exists() == (shards > 1)
    loaded = load_model(path)
    np.testing.assert_allclose(np.array(loaded.model(IDS)), np.array(model(IDS)), atol=1e-5)
    parameters = dict(tree_flatten(loaded.model.parameters()))
    assert ("lm_head.weight" in parameters) != tied
    assert loaded.num_parameters == sum(array.size for array in parameters.values())
    assert loaded.quantization is None
    engine = make_engine(lambda: load_model(path), max_batch_size=4)
    rows = [greedy(prompt, 6, ignore_eos=True) for prompt in ([3, 4], [5] * 30, [9])]
    driver = Driver(engine).run(*rows)
    for row in rows:
        assert driver.tokens(row) == oracle(engine, row.prompt, 6)[0]


@pytest.mark.parametrize("kind", list(QUANTIZATIONS))
@pytest.mark.parametrize("tied", [False, True])
def test_quantize_while_loading(
    make_engine: Callable[..., Engine], tmp_path: Path, kind: str, tied: bool
) -> None:
    path, model = _saved(tmp_path, tie_word_embeddings=tied)
    loaded = load_model(path, quantize=kind)
    expected = QUANTIZATIONS[kind]
    assert loaded.quantization == {
        "mode": expected.mode,
        "group_size": expected.group_size,
        "bits": expected.bits,
    }
    layer = loaded.model.model.layers[0].mlp.up_proj
    # Still packed, on a CPU too; and what is packed is the weight, to the kind's precision.
    assert layer.weight.dtype == mx.uint32
    assert (layer.mode, layer.bits) == (expected.mode, expected.bits)
    packed = mx.quantize(
        model.model.layers[0].mlp.up_proj.weight,
        group_size=expected.group_size,
        bits=expected.bits,
        mode=expected.mode,
    )
    assert mx.array_equal(layer.weight, packed[0])
    plain = load_model(path)
    assert loaded.nbytes < plain.nbytes * (0.35 if expected.bits == 8 else 0.25)
    right = np.array(plain.model(IDS))
    error = np.abs(np.array(loaded.model(IDS)) - right).max()
    assert 0 < error < (0.4 if expected.bits == 8 else 2.4) * right.std()
    # Law 1 for packed weights too: rows together, and alone.
    engine = make_engine(lambda: load_model(path, quantize=kind), max_batch_size=4)
    prompts = ([3, 4], [5] * 30, [9], [200, 100, 50])
    rows = [greedy(prompt, 6, ignore_eos=True, logprobs=0) for prompt in prompts]
    driver = Driver(engine).run(*rows)
    for row in rows:
        tokens, scores = oracle(engine, row.prompt, 6)
        assert driver.tokens(row) == tokens
        assert [e.logprob for e in driver.logprobs(row)] == pytest.approx(scores, abs=1e-3)


def test_a_saved_quantisation_is_not_packed_again(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path)
    loaded = load_model(path, quantize="4bit")
    weights = dict(tree_flatten(loaded.model.parameters()))
    again = checkpoints.write(tmp_path / "packed", loaded.config, weights)
    with pytest.raises(ModelLoadError, match="quantised already"):
        load_model(str(again), quantize="8bit")
    reloaded = load_model(str(again))
    np.testing.assert_allclose(
        np.array(reloaded.model(IDS)), np.array(loaded.model(IDS)), atol=1e-3
    )


def test_no_width_fits(tmp_path: Path) -> None:
    path, _ = _saved(
        tmp_path,
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
    )
    with pytest.raises(ModelLoadError, match="multiple of 64"):
        load_model(path, quantize="4bit")


def test_the_option() -> None:
    assert load_settings([], {}).quantize is None
    assert load_settings(["--quantize", "NVFP4"], {}).quantize == "nvfp4"
    with pytest.raises(SettingsError, match="--quantize 'fp8'"):
        load_settings(["--quantize", "fp8"], {})
    parsed = [load_settings(["--quantize", kind], {}).quantize for kind in QUANTIZATIONS]
    assert parsed == list(QUANTIZATIONS)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
    ],
)
def test_broken_folders(tmp_path: Path, break_it: Callable[[Path], None], message: str) -> None:
    path, _ = _saved(tmp_path)
    break_it(Path(path))
    with pytest.raises(ModelLoadError, match=message):
        load_model(path)


def test_a_shard_is_missing(tmp_path: Path) -> None:
    path, _ = _saved(tmp_path, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="Missing"):
        load_model(path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"


@pytest.mark.parametrize(("width", "group", "fits"), [(128, 64, True), (96, 32, False)])
def test_packed_layers_that_cuda_cannot_multiply_are_refused(
    width: int, group: int, fits: bool
) -> None:
    model = nn.Sequential(nn.QuantizedLinear(width, 32, group_size=group, bits=4))
    if fits:
        check_cuda_shapes(model)
        return
    with pytest.raises(ModelLoadError, match=f"{width} columns.* no multiple of 64"):
        check_cuda_shapes(model)


def test_the_reading_of_weights_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_READ_AT_ONCE", 1_000_000)
    told: list[tuple[str, int, int]] = []

    class Watch(LoadProgress):
        def tell(self, step: Any, completed: int, total: int) -> None:
            super().tell(step, completed, total)
            told.append((step, completed, total))

    plain = load_model("bundled")
    token = watcher.set(Watch())
    watched = load_model("bundled")
    watcher.reset(token)
    steps, completed, totals = zip(*told, strict=True)
    assert set(steps) == {"reading"} and len(set(totals)) == 1
    one, other = (dict(tree_flatten(found.model.parameters())) for found in (plain, watched))
    assert completed[0] == 0 and completed[-1] == totals[0] == sum(a.nbytes for a in one.values())
    assert list(completed) == sorted(completed) and len(told) > 2
    assert all(mx.array_equal(weight, other[name]) for name, weight in one.items())
