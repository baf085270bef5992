"""Packed forwards: what rows get does not depend on whether padding is computed."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.length_class import capacity_for, slots_for
from mlx_parallm.cache.packing import can_pack, packed_logits
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.cache.span import Row, allowed
from mlx_parallm.engine.forward.packed_forwards import bucket
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.adapt import adapt
from mlx_parallm.models.adapting.attention import install_attention
from mlx_parallm.models.body import BodyTap
from tests.models.architectures import TINY, build, vocab_size

_PACKED = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral3",
    "gpt_oss",
    "qwen3_moe",
    "phi3",
    "gemma3_text",
    "gemma4_text",
)


def hooked(model_type: str) -> Any:
    """The model as the ModelRunner prepares it."""
    model = adapt(build(model_type))
    if not replacements.install(model):
        install_attention(model)
    return model


class Packed:
    """Rows in packed forwards, each compared with a forward of its own."""

    def __init__(self, model: Any, body: BodyTap, *, as_on_gpu: bool = False) -> None:
        self.model, self.body = model, body
        self.cache = RowCache(model, bucket if as_on_gpu else int, additive=as_on_gpu)
        self.texts: dict[Row, list[int]] = {}
        self.rng = np.random.default_rng(0)

    def join(self, room: int = 1) -> Row:
        row = self.cache.join(room)
        self.texts[row] = []
        return row

    def step(self, counts: dict[Row, int]) -> dict[Row, np.ndarray]:
        """Logits of so many new tokens of each row; rows that decode all take part."""
        self.cache.make_room(list(counts.items()))
        running = [r for r in counts if r.index < r.home.num_decoding]
        running.sort(key=self.cache.place)
        behind = [r for r in counts if r not in running]
        self.cache.begin([(r, counts[r]) for r in running], [(r, counts[r]) for r in behind])
        tokens, places = np.zeros(self.cache.span.padded, dtype=np.int32), self.cache.places()
        for row, at in places.items():
            new = self.rng.integers(0, 90, len(at)).tolist()
            tokens[at] = new
            self.texts[row] += new
        wanted = np.concatenate(list(places.values()))
        logits = packed_logits(self.model, self.cache, self.body, mx.array(tokens), wanted)
        self.cache.commit()
        mx.eval(logits, self.cache.arrays)
        found = np.array(logits.astype(mx.float32))
        ends = np.cumsum([len(at) for at in places.values()])
        return dict(zip(places, np.split(found, ends[:-1]), strict=True))

    def alone(self, row: Row, count: int) -> np.ndarray:
        """Logits of the row's last tokens, in a forward over all that it holds."""
        text = self.texts[row]
        cache = BatchedCache(self.model)
        cache.join()
        cache.begin(0, 1, len(text), [len(text)])
        logits = self.model(mx.array([text]), cache=cache.layers)[0, -count:]
        return np.array(logits.astype(mx.float32))

    def check(self, counts: dict[Row, int], tolerance: float = 2e-4) -> None:
        for row, logits in self.step(counts).items():
            assert row.length == len(self.texts[row])
            expected = self.alone(row, counts[row])
            largest = np.abs(expected).max()
            np.testing.assert_allclose(logits, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_every_model_that_says_it_can_gives_the_same(model_type: str) -> None:
    """Also behind windows that are full, which the check at load does not try."""
    model = hooked(model_type)
    body = BodyTap(model)
    if not can_pack(model, body):
        assert model_type not in _PACKED
        return
    assert vocab_size(model_type) > 90
    packed = Packed(model, body, as_on_gpu=model_type in ("gemma3_text", "gpt_oss", "llama"))
    rows = [packed.join(room) for room in (1, 1, 300, 100)]
    packed.check(dict(zip(rows, (31, 4, 17, 9), strict=True)))
    for row in rows[:2]:
        packed.cache.to_decoding(row)
    packed.check(dict(zip(rows, (3, 1, 6, 2), strict=True)))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_the_longest_row_and_the_widest_chunk_are_not_the_same_rows(model_type: str) -> None:
    """Their sum is more than their class has columns, which no row needs."""
    model = hooked(model_type)
    packed = Packed(model, BodyTap(model))
    rows = [packed.join(230) for _ in range(2)]
    assert {row.home.capacity for row in rows} == {256}
    packed.check({rows[0]: 65})
    packed.check({rows[0]: 156, rows[1]: 195})  # 65 + 195 > 256
    assert {row.home.capacity for row in rows} == {256}


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_rows_of_any_lengths_come_and_go(data: st.DataObject) -> None:
    """Rows join, catch up, decode with guesses, are rewound, forked, outgrow their class and
    leave, in any order: each has what it would have alone."""
    model = hooked("llama")
    body = BodyTap(model)
    assert can_pack(model, body)
    packed = Packed(model, body, as_on_gpu=data.draw(st.booleans()))
    rows: list[Row] = []
    for _ in range(data.draw(st.integers(2, 5))):
        rooms = data.draw(st.lists(st.sampled_from([1, 70, 200]), max_size=2))
        rows += [packed.join(room) for room in rooms]
        counts = {}
        for row in rows:
            if row.index < row.home.num_decoding:
                counts[row] = data.draw(st.integers(1, 4))
            elif data.draw(st.booleans()) or not row.length:
                counts[row] = data.draw(st.sampled_from([1, 2, 9, 40, 61]))
        if counts:
            packed.check(counts, 1e-3)
        for row in list(rows):
            action = data.draw(st.sampled_from(["stay", "decode", "leave", "rewind", "fork"]))
            if action == "leave":
                packed.cache.leave(row)
                rows.remove(row)
            elif action == "decode" and row.length:
                packed.cache.to_decoding(row)
            elif action == "rewind" and row.length > 1:
                packed.cache.rewind(row, 1)
                packed.texts[row].pop()
            elif action == "fork" and row.length and len(rows) < 6:
                copy = packed.cache.fork(row)
                packed.texts[copy] = list(packed.texts[row])
                rows.append(copy)
    for row in rows:
        packed.cache.leave(row)
    assert packed.cache.nbytes == 0 and packed.cache.rows == []


def test_a_model_whose_attention_goes_another_way_is_padded() -> None:
    model = hooked("gemma2")  # caps its scores itself
    assert not can_pack(model, BodyTap(model))


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=4),
    st.integers(1, 20),
    st.sampled_from([64, 128, 256]),
    st.booleans(),
    st.sampled_from([None, 5, 64]),
)
def test_masks_made_on_the_device_are_the_hosts(
    lengths: list[int], width: int, columns: int, ring: bool, window: int | None
) -> None:
    held = np.array(lengths, dtype=np.int32)
    on_host = allowed(np, held, width, columns, ring, window)
    on_device = allowed(mx, mx.array(held), width, columns, ring, window)
    assert (np.array(on_device) == on_host).all()


@given(st.integers(1, 5000))
def test_forwards_have_few_sizes(tokens: int) -> None:
    assert tokens <= bucket(tokens) <= max(2 * tokens - 1, tokens * 1.25 + 32)
    assert bucket(bucket(tokens)) == bucket(tokens)


@given(st.integers(1, 100_000))
def test_a_class_wastes_little(tokens: int) -> None:
    columns = capacity_for(tokens)
    assert tokens <= columns <= max(64, 1.25 * tokens + 63)
    assert capacity_for(columns) == columns


def test_slots_are_not_hoarded() -> None:
    held = 0
    for rows in [*range(1, 65), *range(64, 0, -1)]:
        held = slots_for(rows, held)
        assert rows <= held < max(2 * rows, rows + 2)
