"""Types of blocks that have no exact equal in MLX: llama.cpp's values and logits all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_parallm.models.gguf.blocks import GROUP, can_pack, pack
from mlx_parallm.models.loader import load_as_stored, load_model
from tests.models import llama_cpp, tiny_gguf
from tests.models.compare_gguf import Note, assert_agrees

# Each weight of the tiny model has another one; those whose quantisers take long are left out.
TYPES = (
    *(Kind.Q4_K, Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.Q5_K),
    *(Kind.IQ2_XXS, Kind.IQ3_XXS, Kind.IQ3_S, Kind.IQ4_NL, Kind.IQ4_XS),
    *(Kind.TQ1_0, Kind.TQ2_0, Kind.MXFP4),
)


@pytest.fixture(autouse=True)
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """These blocks have 256 weights."""
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))
    for name, size in (("WIDTH", 256), ("HIDDEN", 256), ("HEAD", 64), ("LAYERS", 2)):
        monkeypatch.setattr(tiny_gguf, name, size)


def test_weights_and_logits_are_llama_cpps(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    libgguf = pytest.importorskip("libgguf", reason="llama.cpp's quantisers are not installed")
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", TYPES)
    stored = [tensor for tensor in llama_cpp.tensors(file) if len(tensor.shape) > 1]
    assert {tensor.tensor_type for tensor in stored} == set(TYPES)
    for tensor in stored:
        right = libgguf.dequantize_rows(tensor.data, tensor.tensor_type)
        assert np.array_equal(quants.dequantize(tensor.data, tensor.tensor_type), right)
    prompt = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
    # Of the same values: from blocks, llama.cpp computes with inputs of 8 bits.
    with llama_cpp.serve(llama_cpp.unpacked(file, tmp_path / "plain.gguf")) as oracle:
        said = oracle.continue_greedily(prompt, 24)
    # Two tokens that are nearly as likely may change places.
    note = Note(record_property, "random", ", ".join(kind.name for kind in TYPES))
    assert assert_agrees(load_model(str(file)), prompt, said, 0.05, note) >= 0.9


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q5_K])
def test_blocks_of_256_stay_packed(kind: Kind, tmp_path: Path) -> None:
    libgguf = pytest.importorskip("libgguf", reason="llama.cpp's quantisers are not installed")
    values = np.random.default_rng(1).standard_normal((3, 5, 512)).astype(np.float32)
    data = libgguf.quantize_rows(0.02 * values, kind)
    assert can_pack(kind)
    packed = pack(data, kind)
    scales, biases = (
        mx.array(a).astype(mx.float32) for a in (packed.scales, packed.biases) if a is not None
    )
    weight = mx.array(packed.weight)
    found = np.array(mx.dequantize(weight, scales, biases, group_size=GROUP, bits=packed.bits))
    right = libgguf.dequantize_rows(data, kind)
    error = np.linalg.norm(found - right) / np.linalg.norm(right)
    assert error == pytest.approx(packed.error, rel=0.05)
    assert 0 < error < 1e-3
    model, _, _ = load_as_stored(str(tiny_gguf.write(tmp_path / "tiny.gguf", "llama", kind)))
    assert model.model.layers[0].mlp.down_proj.bits == packed.bits
