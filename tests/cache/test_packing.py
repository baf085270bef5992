"""Packed forwards: what rows get does not depend on whether padding is computed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.packing import can_pack, token_logits
from mlx_parallm.models import replacements
from mlx_parallm.models.adapt import adapt
from mlx_parallm.models.attention import install_attention
from tests.models.architectures import TINY, build, vocab_size

_PACKED = ("llama", "qwen2", "qwen3", "mistral3", "gpt_oss", "qwen3_moe", "phi3")


def hooked(model_type: str) -> Any:
    """The model as the ModelRunner prepares it."""
    model = adapt(build(model_type))
    if not replacements.install(model):
        install_attention(model)
    return model


def forward(
    model: Any, lengths: list[int], counts: list[int], packed: bool, seed: int = 0
) -> tuple[mx.array, BatchedCache]:
    """(N, V) logits of the rows' new tokens behind `lengths` others, and the cache after it."""
    rng = np.random.default_rng(seed)
    cache = BatchedCache(model)
    for _ in lengths:
        cache.join()
    width = max(lengths)
    known = rng.integers(0, 90, (len(lengths), width))
    cache.begin(0, len(lengths), width, lengths)
    model(mx.array(known), cache=cache.layers)
    cache.commit()
    mx.eval(cache.arrays)
    inputs = rng.integers(0, 90, (len(counts), max(counts)))
    cache.begin(0, len(counts), max(counts), counts, packed=packed)
    logits = token_logits(model, cache, mx.array(inputs))
    cache.commit()
    mx.eval(logits, cache.arrays)
    return logits, cache


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_every_model_that_says_it_can_gives_the_same(model_type: str) -> None:
    """Also behind windows that are full, which the check at load does not try."""
    model = hooked(model_type)
    if not can_pack(model):
        assert model_type not in _PACKED
        return
    assert vocab_size(model_type) > 90
    lengths, counts = [31, 4, 17, 9], [3, 1, 6, 2]
    padded, _ = forward(model, lengths, counts, packed=False)
    packed, _ = forward(model, lengths, counts, packed=True)
    np.testing.assert_allclose(np.array(packed), np.array(padded), rtol=2e-4, atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_of_any_lengths_and_counts(data: st.DataObject) -> None:
    model = hooked("llama")
    size = data.draw(st.integers(1, 5))
    numbers = st.lists(st.integers(1, 9), min_size=size, max_size=size)
    lengths, counts = data.draw(numbers), data.draw(numbers)
    padded, _ = forward(model, lengths, counts, packed=False)
    packed, cache = forward(model, lengths, counts, packed=True)
    np.testing.assert_allclose(np.array(packed), np.array(padded), rtol=1e-4, atol=1e-4)
    both = [a + b for a, b in zip(lengths, counts, strict=True)]
    assert [row.length for row in cache.rows] == both


def test_a_model_whose_attention_goes_another_way_is_padded() -> None:
    assert not can_pack(hooked("gemma2"))  # caps its scores itself
