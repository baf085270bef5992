"""packed.py: products with weights in few bits, against float64; the weights stay packed."""

from __future__ import annotations

import gc
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from mlx_parallm.cpu import blas, products
from mlx_parallm.models.adapting import packed
from mlx_parallm.models.loader import load_model

if sys.platform != "linux" or "mlx_cpu" not in blas._mlx_packages() or products.why_not():
    pytest.skip("our own products are for x86 CPUs on Linux", allow_module_level=True)

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
    words, scales, *_ = mx.quantize(w, mode="mxfp4")
    found = mx.quantized_matmul(x, words, scales=scales, mode="mxfp4")
    right = x @ mx.dequantize(words, scales=scales, mode="mxfp4").T
    assert mx.allclose(found, right, atol=1e-3).item()


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
