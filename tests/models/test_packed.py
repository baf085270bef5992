"""packed.py: products with weights in few bits, against float64; the weights stay packed."""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral

from mlx_parallm.cpu import blas, products
from mlx_parallm.models.adapting import packed
from mlx_parallm.models.loader import load_model
from tests.engine import mock

if sys.platform != "linux" or "mlx_cpu" not in blas._mlx_packages() or products.why_not():
    pytest.skip("our own products are for x86 CPUs on Linux", allow_module_level=True)

MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "vocab_size": mock.VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "tie_word_embeddings": True,
}
ROWS = (1, 2, 5, 8, 9, 31, 40, 41, 150)


@pytest.fixture(autouse=True)
def installed() -> None:
    assert packed.install()


def weights(
    rows: int, columns: int, bits: int, group: int
) -> tuple[tuple[mx.array, mx.array, mx.array], np.ndarray]:
    """Words, scales and biases, and their values in float64."""
    drawn = np.random.default_rng(bits).standard_normal((rows, columns)).astype(np.float32)
    words, scales, biases = mx.quantize(mx.array(drawn), group, bits)
    plain = mx.dequantize(words, scales, biases, group, bits)
    return (words, scales, biases), np.array(plain).astype(np.float64)


def product(
    x: np.ndarray, parts: tuple[mx.array, mx.array, mx.array], *, group_size: int, bits: int
) -> np.ndarray:
    return np.array(mx.quantized_matmul(mx.array(x), *parts, True, group_size, bits))


@pytest.mark.parametrize("bits", sorted(packed.BITS))
@pytest.mark.parametrize(("rows", "columns", "group"), [(70, 96, 32), (300, 1088, 64)])
def test_products_are_right_and_do_not_depend_on_the_rows(
    bits: int, rows: int, columns: int, group: int
) -> None:
    """Law 1: to the last bit for up to 40 rows, which are computed by the same kernels."""
    parts, plain = weights(rows, columns, bits, group)
    x = np.random.default_rng(1).standard_normal((max(ROWS), columns)).astype(np.float32)
    alone = product(x[:1], parts, group_size=group, bits=bits)
    for count in ROWS:
        found = product(x[:count], parts, group_size=group, bits=bits)
        right = x[:count] @ plain.T
        assert np.abs(found - right).max() < 3e-6 * np.abs(right).max()
        if count <= 40:
            assert np.array_equal(found[:1], alone)


def test_a_batch_of_several_axes_and_a_bias() -> None:
    parts, plain = weights(64, 128, 4, 32)
    layer = nn.QuantizedLinear(128, 64, bias=True, group_size=32, bits=4)
    layer.weight, layer.scales, layer.biases = parts
    layer.bias = mx.arange(64, dtype=mx.float32)
    assert packed.stays_packed(layer)
    x = np.random.default_rng(1).standard_normal((3, 7, 128)).astype(np.float32)
    right = x @ plain.T + np.arange(64)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), right, atol=1e-4)


def test_gradients_go_through() -> None:
    """As an adapter's training needs them: with respect to what goes in."""
    parts, plain = weights(250, 128, 4, 32)

    def loss(x: mx.array) -> mx.array:
        y = mx.quantized_matmul(x, *parts, transpose=True, group_size=32, bits=4)
        return (y * y).sum()

    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    right = 2 * (x @ plain.T) @ plain
    found = np.array(mx.grad(loss)(mx.array(x)))
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())


def test_other_weights_are_mlxs_own_affair() -> None:
    x, w = mx.random.normal((4, 64)), mx.random.normal((32, 64))
    words, scales, *_ = mx.quantize(w, mode="mxfp8")
    found = mx.quantized_matmul(x, words, scales=scales, mode="mxfp8")
    right = x @ mx.dequantize(words, scales=scales, mode="mxfp8").T
    assert mx.allclose(found, right, atol=1e-3).item()


KINDS = [("affine", bits, group) for bits in sorted(packed.BITS) for group in (32, 64)]


@dataclass
class Experts:
    """Packed matrices, and their values in float64."""

    words: mx.array
    scales: mx.array
    biases: mx.array | None
    plain: np.ndarray
    kind: tuple[str, int, int]

    def times(self, x: mx.array, chosen: np.ndarray) -> mx.array:
        """mx.gather_qmm."""
        mode, bits, group = self.kind
        product: mx.array = mx.gather_qmm(
            x,
            self.words,
            self.scales,
            self.biases,
            rhs_indices=mx.array(chosen),
            transpose=True,
            group_size=group,
            bits=bits,
            mode=mode,
        )
        return product


def experts(count: int, rows: int, columns: int, kind: tuple[str, int, int]) -> Experts:
    """With scales of all sizes."""
    mode, bits, group = kind
    drawn = np.random.default_rng(bits).standard_normal((count, rows, columns))
    drawn *= np.exp(3 * np.random.default_rng(1).standard_normal((count, rows, 1)))
    words, scales, *more = mx.quantize(mx.array(drawn.astype(np.float32)), group, bits, mode)
    biases = more[0] if more else None
    plain = mx.dequantize(words, scales, biases, group, bits, mode).astype(mx.float32)
    return Experts(words, scales, biases, np.array(plain).astype(np.float64), kind)


@pytest.mark.parametrize("kind", [*KINDS, ("mxfp4", 4, 32)])
@pytest.mark.parametrize(("count", "rows", "columns"), [(7, 70, 192), (3, 50, 1088)])
def test_each_row_is_multiplied_by_its_expert(
    kind: tuple[str, int, int], count: int, rows: int, columns: int
) -> None:
    """And to the last bit as alone, whoever else uses that expert."""
    packed_experts = experts(count, rows, columns, kind)
    plain = packed_experts.plain
    rng = np.random.default_rng(2)
    x = rng.standard_normal((90, 1, 1, columns)).astype(np.float32)
    chosen = rng.integers(0, count, (90, 3)).astype(np.uint32)
    chosen[:70, 0] = 1  # more rows than use what is unpacked once
    found = np.array(packed_experts.times(mx.array(x), chosen))
    assert found.shape == (90, 3, 1, rows)
    right, size = (
        np.einsum("tk,tenk->ten", part[0], part[1])
        for part in ((x[:, 0, 0], plain[chosen]), (abs(x[:, 0, 0]), abs(plain[chosen])))
    )
    assert (np.abs(found[:, :, 0] - right) < 2e-6 * size).all()
    for few in (slice(0, 1), slice(5, 9), slice(80, 90)):
        alone = np.array(packed_experts.times(mx.array(x[few]), chosen[few]))
        assert np.array_equal(alone, found[few])


def test_a_dense_layer_in_mxfp4() -> None:
    one = experts(1, 90, 160, ("mxfp4", 4, 32))
    x = np.random.default_rng(1).standard_normal((9, 160)).astype(np.float32)
    words, scales = one.words[0], one.scales[0]
    found = np.array(mx.quantized_matmul(mx.array(x), words, scales, mode="mxfp4"))
    right = x @ one.plain[0].T
    assert (np.abs(found - right).max(0) < 5e-6 * np.abs(right).max(0)).all()


def test_gradients_go_through_experts() -> None:
    four = experts(4, 90, 128, ("affine", 4, 32))
    plain = four.plain
    x = np.random.default_rng(1).standard_normal((5, 1, 1, 128)).astype(np.float32)
    chosen = np.array([[0, 1], [1, 3], [3, 0], [1, 2], [2, 2]], np.uint32)

    def loss(x: mx.array) -> mx.array:
        y = four.times(x, chosen)
        return (y * y).sum()

    y = np.einsum("tk,tenk->ten", x[:, 0, 0], plain[chosen])
    right = np.einsum("ten,tenk->tk", 2 * y, plain[chosen])
    found = np.array(mx.grad(loss)(mx.array(x)))[:, 0, 0]
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())


def test_a_row_for_an_expert_that_is_not_there_is_nan() -> None:
    four = experts(4, 70, 128, ("affine", 4, 32))
    found = np.array(four.times(mx.ones((3, 1, 128)), np.array([1, 4, 2], np.uint32)))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2], 0], four.plain[[1, 2]].sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["4bit", "mxfp4"])
def test_a_mixture_of_experts_stays_packed(tmp_path: Path, kind: str) -> None:
    model = mixtral.Model(mixtral.ModelArgs(**MIXTRAL))
    mx.eval(model.parameters())
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL))
    mock.byte_tokenizer()._tokenizer.save_pretrained(tmp_path)
    few = load_model(str(tmp_path), quantize=kind)
    assert few.nbytes < sum(array.nbytes for array in weights.values()) / 4
    ids = mx.array([list(range(20, 60))])
    found = np.array(few.model(ids))
    np.testing.assert_allclose(found, np.array(_unpacked(few.model)(ids)), atol=1e-3)


def test_weights_that_do_not_lie_row_after_row() -> None:
    (words, scales, biases), plain = weights(64, 128, 4, 32)
    parts = tuple(mx.contiguous(part.T).T for part in (words, scales, biases))
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    found = product(x, (parts[0], parts[1], parts[2]), group_size=32, bits=4)
    np.testing.assert_allclose(found, x @ plain.T, atol=1e-4)


def test_weights_that_are_replaced_or_gone() -> None:
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    (words, scales, biases), plain = weights(32, 64, 8, 32)
    how = {"group_size": 32, "bits": 8}
    product(x, (words, scales, biases), **how)
    doubled = product(x, (words, 2 * scales, 2 * biases), **how)
    np.testing.assert_allclose(doubled, 2 * (x @ plain.T), atol=1e-4)
    # A result that is computed after its weights have gone.
    key = id(words)
    assert key in packed._stand_ins._known
    late = mx.quantized_matmul(mx.array(x), words, scales, biases, True, 32, 8)
    del words, scales, biases
    gc.collect()
    _unused = [weights(32, 64, 8, 32) for _ in range(8)]  # whose memory theirs may become
    np.testing.assert_allclose(np.array(late), x @ plain.T, atol=1e-4)
    assert key not in packed._stand_ins._known


def test_a_packed_model_is_as_small_as_its_file() -> None:
    plain = load_model("bundled")
    few = load_model("bundled", quantize="4bit")
    assert few.quantization is not None
    assert few.nbytes < plain.nbytes / 4
    ids = mx.array([list(range(20, 60))])
    nn_values = np.array(few.model(ids))
    unpacked = np.array(_unpacked(few.model)(ids))
    np.testing.assert_allclose(nn_values, unpacked, atol=1e-3)


def _unpacked(model: nn.Module) -> nn.Module:
    from mlx_lm.utils import dequantize_model

    found: nn.Module = dequantize_model(model)
    return found
