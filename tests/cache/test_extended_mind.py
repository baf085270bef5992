"""Extended Mind attention against oracles: mlx-lm's own runs, and float64 softmax in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map_with_path
from mlx_lm.models import llama, phi3, qwen2, qwen3

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.extended_mind import MemoryForward
from mlx_parallm.cache.retrieval import LayerMemory, largest
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.memory.capture import Capture, windows
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.view import MemoryView, Position, build_layer
from mlx_parallm.models.adapting.adapt import adapt
from mlx_parallm.models.adapting.attention import install_attention
from tests.models import architectures

pytestmark = pytest.mark.usefixtures("no_compile")

VOCAB = 97
TOLERANCE = 1e-5
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (llama, {}),
    "grouped llama": (llama, {"num_key_value_heads": 2}),
    "qwen3": (qwen3, {"num_key_value_heads": 2, "head_dim": 16}),
    "qwen2": (qwen2, {"num_key_value_heads": 2}),
    "phi3": (phi3, {"num_key_value_heads": 2, "rope_scaling": None}),
}


class Doc:
    """As much of a document as a view needs here."""

    def __init__(self, size: int) -> None:
        self.num_memories = size


def make(kind: str, **changes: Any) -> Any:
    """A tiny model whose logits are about 1, so that an absolute error means something."""
    module, own = KINDS[kind]
    config = {**SHAPE, "model_type": module.__name__.rpartition(".")[2], **own, **changes}
    model = module.Model(module.ModelArgs.from_dict(config))
    rng = np.random.default_rng(5)

    def draw(path: str, value: mx.array) -> mx.array:
        noise = mx.array(rng.standard_normal(value.shape).astype(np.float32))
        if value.ndim < 2:
            return 1 + 0.2 * noise if "bias" not in path else 0.2 * noise
        if "embed" in path:
            return noise
        gain = 2.0 if "q_proj" in path or "k_proj" in path else 1.0
        scaled: mx.array = noise * (gain / value.shape[-1] ** 0.5)
        return scaled

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    install_attention(adapt(model))
    return model


def tokens(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, VOCAB, count).astype(np.int32)


def remember(
    model: Any,
    ids: np.ndarray,
    position: Position,
    window: int = 512,
    stride: int = 64,
    kept: np.ndarray | None = None,
) -> MemoryView:
    """Memories of some tokens, without the manager around it."""
    capture = Capture(model)
    parts: list[Any] = [[] for _ in range(capture.num_layers)]
    for part in windows(len(ids), window, stride):
        for _, made in capture.steps(ids, part, lambda: 7):
            for layer, pair in enumerate(made):
                parts[layer].append(pair)
    places = mx.array(np.arange(len(ids)) if kept is None else np.flatnonzero(kept))
    view = MemoryView((id(parts), position), position, (Doc(len(places)),))  # type: ignore[arg-type]
    for layer, made in enumerate(parts):
        keys = mx.concatenate([k for k, _ in made], axis=1)[:, places]
        values = mx.concatenate([v for _, v in made], axis=1)[:, places]
        view.layers.append(build_layer([(keys, values)], layer, position, capture.rotate))
    return view


def run(model: Any, ids: np.ndarray, request: MemoryRequest | None, steps: list[int]) -> np.ndarray:
    """(L, vocab) logits of one row, computed in forwards of so many tokens."""
    cache, outputs, at = BatchedCache(model), [], 0
    row = cache.join()
    if request is not None:
        row.memory, row.shift = request, request.shift
    for count in steps:
        cache.begin(0, 1, count, [count])
        outputs.append(model(mx.array(ids[at : at + count])[None], cache=cache.layers)[0])
        cache.commit()
        at += count
    assert at == len(ids)
    return np.array(mx.concatenate(outputs))


class FixedRope:
    """Rotates each token by the position that it is told, whatever the offset."""

    def __init__(self, rope: Any, positions: list[int]) -> None:
        self.rope, self.positions = rope, positions

    def __call__(self, x: mx.array, offset: Any = 0) -> mx.array:
        each = [
            self.rope(x[:, :, t : t + 1], offset=position)
            for t, position in enumerate(self.positions)
        ]
        return mx.concatenate(each, axis=2)


def run_at(model: Any, ids: np.ndarray, positions: list[int]) -> np.ndarray:
    """mlx-lm's plain run without a cache, with these position ids."""
    ropes = [layer.self_attn.rope for layer in model.layers]
    try:
        for layer, rope in zip(model.layers, ropes, strict=True):
            layer.self_attn.rope = FixedRope(rope, positions)
        return np.array(model(mx.array(ids)[None])[0])
    finally:
        for layer, rope in zip(model.layers, ropes, strict=True):
            layer.self_attn.rope = rope


# Whole models


@pytest.mark.parametrize("kind", KINDS)
def test_contiguous_equals_the_ordinary_prefix(kind: str) -> None:
    model, memory, text = make(kind), tokens(61, 1), tokens(17, 2)
    request = MemoryRequest(remember(model, memory, "contiguous"), topk=10**6)
    expected = np.array(model(mx.array(np.concatenate([memory, text]))[None])[0, 61:])
    for steps in ([17], [5, 11, 1], [16, 1]):
        assert np.abs(run(model, text, request, steps) - expected).max() < TOLERANCE
    assert np.abs(run(model, text, None, [17]) - expected).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_zero_equals_memories_at_position_zero_in_the_first_layer(kind: str) -> None:
    model, memory, text = make(kind, num_hidden_layers=1), tokens(40, 1), tokens(9, 2)
    request = MemoryRequest(remember(model, memory, "zero"), topk=10**6)
    expected = run_at(model, np.concatenate([memory, text]), [0] * 40 + list(range(9)))[40:]
    assert np.abs(run(model, text, request, [4, 4, 1]) - expected).max() < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_zero_equals_it_in_all_layers_when_memories_were_made_at_position_zero(kind: str) -> None:
    model, memory, text = make(kind), tokens(40, 1), tokens(9, 2)

    def unrotated(self: Any, x: mx.array, offset: Any = 0) -> mx.array:
        return x + 0

    ropes = [layer.self_attn.rope for layer in model.layers]
    kinds = [type(rope) for rope in ropes]
    for rope in ropes:
        rope.__class__ = type("Unrotated", (type(rope),), {"__call__": unrotated})
    view = remember(model, memory, "zero")
    for rope, own in zip(ropes, kinds, strict=True):
        rope.__class__ = own
    request = MemoryRequest(view, topk=10**6)
    expected = run_at(model, np.concatenate([memory, text]), [0] * 40 + list(range(9)))[40:]
    assert np.abs(run(model, text, request, [4, 4, 1]) - expected).max() < TOLERANCE


def test_local_offset_moves_the_text_away_from_the_memories() -> None:
    model, memory, text = make("llama", num_hidden_layers=1), tokens(40, 1), tokens(9, 2)
    view = remember(model, memory, "zero")
    positions = [0] * 40 + list(range(30, 39))
    expected = run_at(model, np.concatenate([memory, text]), positions)[40:]
    found = run(model, text, MemoryRequest(view, topk=10**6, local_offset=30), [8, 1])
    assert np.abs(found - expected).max() < TOLERANCE
    near = run(model, text, MemoryRequest(view, topk=10**6), [8, 1])
    assert np.abs(near - expected).max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "grouped llama", "qwen3"])
@pytest.mark.parametrize("position", ["zero", "contiguous"])
@pytest.mark.parametrize(("topk", "threshold"), [(1, None), (5, None), (8, 0.2), (10**6, 0.0)])
def test_a_few_memories_equal_dense_attention_masked_to_them(
    kind: str, position: Position, topk: int, threshold: float | None, monkeypatch: Any
) -> None:
    model, memory, text = make(kind), tokens(300, 1), tokens(12, 2)
    request = MemoryRequest(remember(model, memory, position), topk, threshold)
    found = run(model, text, request, [6, 5, 1])
    monkeypatch.setattr(MemoryForward, "attend", dense_attend)
    expected = run(model, text, request, [6, 5, 1])
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "grouped llama", "qwen3"])
def test_a_threshold_above_one_equals_no_memory(kind: str) -> None:
    model, memory, text = make(kind), tokens(50, 1), tokens(12, 2)
    request = MemoryRequest(remember(model, memory, "zero"), sim_threshold=1.01)
    alone = run(model, text, None, [8, 3, 1])
    assert np.abs(run(model, text, request, [8, 3, 1]) - alone).max() < TOLERANCE


def test_layers_that_are_not_chosen_stay_on_the_plain_path() -> None:
    model, memory, text = make("llama"), tokens(50, 1), tokens(12, 2)
    view = remember(model, memory, "zero")
    none = run(model, text, MemoryRequest(view, layers=frozenset()), [12])
    assert (none == run(model, text, None, [12])).all()
    some = run(model, text, MemoryRequest(view, layers=frozenset({0, 2})), [12])
    every = run(model, text, MemoryRequest(view), [12])
    assert np.abs(some - none).max() > 1e-3 and np.abs(some - every).max() > 1e-3


def test_windows_cover_every_token_once_with_enough_before_it() -> None:
    for count, window, stride in [(5, 8, 3), (8, 8, 8), (9, 8, 3), (100, 16, 5), (64, 16, 16)]:
        kept = []
        for part in windows(count, window, stride):
            assert part.stop - part.start <= window
            kept += list(range(part.keep, part.stop))
            assert part.keep - part.start >= min(part.keep, window - stride)
        assert kept == list(range(count))


def test_memories_of_a_long_text_are_those_of_each_window_from_position_zero() -> None:
    model, memory = make("qwen3"), tokens(50, 1)
    view = remember(model, memory, "zero", window=16, stride=6)
    last = windows(50, 16, 6)[-1]
    alone = remember(model, memory[last.start : last.stop], "zero")
    for layer, single in zip(view.layers, alone.layers, strict=True):
        kept = last.stop - last.keep
        assert np.allclose(layer.unit[:, -kept:], single.unit[:, -kept:], atol=1e-5)
        assert np.allclose(layer.values[:, -kept:], single.values[:, -kept:], atol=1e-4)


def test_models_with_recurrent_layers_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="attention"):
        Capture(architectures.build("mamba"))


def test_every_named_architecture_is_supported() -> None:
    for kind in ("llama", "mistral", "qwen2", "qwen3", "phi3", "llama:llama3", "phi3:longrope"):
        model = architectures.build(kind)
        assert Capture(adapt(model)).num_layers == len(model.layers)


# Rows of one batch


def test_rows_of_a_mixed_batch_equal_each_row_alone() -> None:
    """Different collections, k, thresholds, layers, lengths; none at all; padding."""
    model = make("grouped llama")
    one, other = (remember(model, tokens(n, n), "zero") for n in (90, 400))
    before = remember(model, tokens(33, 3), "contiguous")
    requests = [
        MemoryRequest(one),
        None,
        MemoryRequest(other, topk=3),
        MemoryRequest(one),
        MemoryRequest(before, topk=50),
        MemoryRequest(other, topk=3, sim_threshold=0.3),
        None,
        MemoryRequest(one, topk=4, layers=frozenset({1}), local_offset=9),
    ]
    texts = [tokens(6 + 3 * i, 50 + i) for i in range(len(requests))]
    alone = [
        run(model, text, request, [len(text) - 2, 1, 1])
        for text, request in zip(texts, requests, strict=True)
    ]
    cache = BatchedCache(model)
    for request in requests:
        row = cache.join()
        if request is not None:
            row.memory, row.shift = request, request.shift
    counts = [len(text) - 2 for text in texts]
    at = [0] * len(texts)
    for step in (counts, [1] * 8, [1] * 8):
        width = max(step)
        inputs = np.zeros((8, width), dtype=np.int32)
        for place, (text, count) in enumerate(zip(texts, step, strict=True)):
            inputs[place, :count] = text[at[place] : at[place] + count]
        cache.begin(0, 8, width, step)
        logits = np.array(model(mx.array(inputs), cache=cache.layers))
        cache.commit()
        for place, count in enumerate(step):
            expected = alone[place][at[place] : at[place] + count]
            assert np.abs(logits[place, :count] - expected).max() < TOLERANCE, place
            at[place] += count


def test_rows_without_memories_are_the_same_to_the_bit() -> None:
    model = make("grouped llama")
    view = remember(model, tokens(90, 1), "zero")
    inputs = mx.array(np.stack([tokens(12, 1), tokens(12, 2), tokens(12, 3)]))

    def logits(*requests: MemoryRequest | None) -> np.ndarray:
        cache = BatchedCache(model)
        for request in requests:
            cache.join().memory = request
        cache.begin(0, 3, 12, [12] * 3)
        return np.array(model(inputs, cache=cache.layers))

    # The model is a row at a time but for its matrix products, so the plain rows agree.
    mixed, plain = logits(None, MemoryRequest(view), None), logits(None, None, None)
    assert (mixed[[0, 2]] == plain[[0, 2]]).all()
    assert np.abs(mixed[1] - plain[1]).max() > 1e-3


def test_a_fork_has_the_memories_of_its_leader() -> None:
    model = make("llama")
    request = MemoryRequest(remember(model, tokens(30, 1), "contiguous"))
    cache = BatchedCache(model)
    row = cache.join()
    row.memory, row.shift = request, request.shift
    fork = cache.fork(row)
    assert fork.memory is request and fork.shift == 30


# The attention alone, against float64


def dense_attend(
    self: MemoryForward,
    layer: int,
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
    plain: Callable[[], mx.array] | None = None,
) -> mx.array:
    """One softmax in float64 over all memories and local tokens, masked to the top k."""
    q, k, v = (np.array(a).astype(np.float64) for a in (queries, keys, values))
    rows, heads, width, _ = q.shape
    columns, group = k.shape[2], heads // k.shape[1]
    if mask is None:
        allowed = np.ones((rows, 1, width, columns), bool)
    elif isinstance(mask, str):
        allowed = np.tril(np.ones((width, columns), bool), columns - width)[None, None]
        allowed = np.broadcast_to(allowed, (rows, 1, width, columns))
    else:
        allowed = np.broadcast_to(np.array(mask), (rows, 1, width, columns))
    requests: dict[int, Any] = {
        row: g.request for g in self.groups for row in g.rows if g.request.uses(layer)
    }
    output = np.zeros_like(q)
    for row in range(rows):
        for head in range(heads):
            for t in range(width):
                local = q[row, head, t] @ k[row, head // group].T * scale
                local[~allowed[row, 0, t]] = -np.inf
                scores, rest = local, v[row, head // group]
                if row in requests:
                    request = requests[row]
                    memory = request.view.layers[layer]
                    unit, norms, vm = (
                        np.array(a[head // group]).astype(np.float64)
                        for a in (memory.unit, memory.norms, memory.values)
                    )
                    cosine = unit @ q[row, head, t] / np.linalg.norm(q[row, head, t])
                    best = np.argsort(-cosine)[: request.topk]
                    if request.sim_threshold is not None:
                        best = best[cosine[best] > request.sim_threshold]
                    found = unit[best] @ q[row, head, t] * norms[best] * scale
                    scores = np.concatenate([found, scores])
                    rest = np.concatenate([vm[best], rest])
                if sinks is not None:
                    scores = np.concatenate([scores, [float(sinks[head])]])
                    rest = np.concatenate([rest, np.zeros((1, rest.shape[1]))])
                weights = np.exp(scores - scores.max())
                output[row, head, t] = weights / weights.sum() @ rest
    return mx.array(output.astype(np.float32))


@pytest.mark.parametrize("sinks", [None, mx.array([0.5, -1.0, 2.0, 0.0, 1.0, -0.5])])
@pytest.mark.parametrize("masked", ["none", "causal", "rows"])
def test_attend_against_float64(masked: str, sinks: mx.array | None) -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape).astype(np.float32))

    def view(size: int) -> MemoryView:
        layers = [LayerMemory(2 * array(3, size, 8), array(3, size, 8))]
        return MemoryView((object(),), "zero", (Doc(size),), layers)  # type: ignore[arg-type]

    big, small = view(3000), view(5)
    forward = MemoryForward(
        [
            MemoryRequest(big, topk=7),
            None,
            MemoryRequest(small, topk=7),
            MemoryRequest(big, topk=7),
            MemoryRequest(big, topk=2, sim_threshold=0.5),
        ]
    )
    width = 1 if masked == "none" else 4
    arrays = array(5, 6, width, 8), array(5, 3, 11, 8), array(5, 3, 11, 8)
    mask: Any = {"none": None, "causal": "causal"}.get(masked)
    if masked == "rows":
        lengths = rng.integers(4, 11, (5, 1, 1, 1))
        mask = mx.array(np.arange(11) <= lengths + np.arange(4)[:, None] - 3)
    found = forward.attend(0, *arrays, scale=0.35, mask=mask, sinks=sinks)
    expected = dense_attend(forward, 0, *arrays, scale=0.35, mask=mask, sinks=sinks)
    assert np.abs(np.array(found) - np.array(expected)).max() < TOLERANCE


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_has_no_nan_where_everything_is_masked(dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)
        for shape in ((1, 2, 1, 8), (1, 1, 4, 8), (1, 1, 4, 8), (1, 20, 8), (1, 20, 8))
    ]
    layers = [LayerMemory(*arrays[3:])]
    view = MemoryView((object(),), "zero", (Doc(20),), layers)  # type: ignore[arg-type]
    plain = mx.fast.scaled_dot_product_attention(*arrays[:3], scale=0.35)
    for threshold in (None, 1.5):
        forward = MemoryForward([MemoryRequest(view, sim_threshold=threshold, topk=3)])
        found = forward.attend(0, *arrays[:3], scale=0.35, mask=None)
        assert found.dtype == dtype
        error = np.array((found - plain).astype(mx.float32))
        assert np.isfinite(error).all()
        if threshold is not None:
            assert np.abs(error).max() < 0.02


@pytest.mark.parametrize(("size", "k"), [(10, 3), (700, 2), (2560, 10), (2600, 10), (5000, 1)])
def test_the_largest_are_found_in_two_stages(size: int, k: int) -> None:
    values = mx.array(np.random.default_rng(size).standard_normal((2, 5, size)).astype(np.float32))
    ids, found = largest(values, k)
    expected = -np.sort(-np.array(values), axis=-1)[..., :k]
    assert (np.array(-mx.sort(-found, axis=-1)) == expected).all()
    assert (np.array(mx.take_along_axis(values, ids, axis=-1)) == np.array(found)).all()


def test_a_long_prompt_is_searched_in_parts(monkeypatch: Any) -> None:
    rng = np.random.default_rng(1)
    keys, values, queries = (
        mx.array(rng.standard_normal(shape).astype(np.float32))
        for shape in ((2, 500, 8), (2, 500, 8), (2, 37, 8))
    )
    memory = LayerMemory(keys, values)
    places, scores = memory.nearest(queries, 4)
    monkeypatch.setattr("mlx_parallm.cache.retrieval._MOST_SIMILARITIES", 5000)
    in_parts, scores_in_parts = memory.nearest(queries, 4)
    assert (np.sort(np.array(in_parts)) == np.sort(np.array(places))).all()
    error = np.sort(np.array(scores_in_parts)) - np.sort(np.array(scores))
    assert np.abs(error).max() < TOLERANCE
