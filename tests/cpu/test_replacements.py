"""Every CPU replacement against the plain operation it stands for."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models import activations as mlx_lm_activations
from mlx_lm.models import gemma, llama, qwen3, rope_utils
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache

from mlx_parallm.cpu import activations, allocator, blas, exponential, fusing, linear, rope
from mlx_parallm.cpu import attention as cpu_attention
from mlx_parallm.cpu.attention import attention
from mlx_parallm.cpu.norm import RowRMSNorm
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.attention import (
    AttentionHook,
    install_attention,
    uninstall_attention,
)

SIZES = (7, 5000, 40000)  # powf; fused kernels; single operations too


@pytest.fixture(params=["fused", "plain"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with fused kernels, and as where there is no compiler."""
    if request.param == "fused" and not fusing.compile_kernels():
        pytest.skip("no C++ compiler")
    if request.param == "plain":
        fusing.stop_fusing()
    yield
    fusing.stop_fusing()


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> mx.array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return mx.array(values.astype(np.float32))


def close(found: mx.array, expected: mx.array, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)),
        np.array(expected.astype(mx.float32)),
        rtol=tolerance,
        atol=tolerance,
    )


# exp and its family


@pytest.mark.parametrize("size", SIZES)
def test_exp_is_exact_to_its_promise(each_way: None, size: int) -> None:
    x = np.linspace(-87, 88, size).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(np.array(exponential.exp(mx.array(x))) / exact - 1)
    assert error.max() < 5e-6
    assert error[np.abs(x) < 10].max(initial=0) < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_exp_at_the_ends(each_way: None, size: int) -> None:
    ends = [-math.inf, -1e30, -104.0, 0.0, 89.0, 1e30, math.inf, math.nan]
    x = mx.array(ends + [0.0] * size)
    found = np.array(exponential.exp(x))[: len(ends)]
    np.testing.assert_array_equal(found[:7], [0, 0, 0, 1, math.inf, math.inf, math.inf])
    assert math.isnan(found[7])


def test_exp_of_strided_and_of_other_types(each_way: None) -> None:
    x = normal(300, 200).T
    close(exponential.exp(x), mx.exp(x))
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(exponential.exp(half), mx.exp(half))


@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 7, 256, 300, 4096, 50000]),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1000.0]),
    masked=st.booleans(),
)
def test_softmax_family(rows: int, columns: int, scale: float, masked: bool) -> None:
    x = normal(rows, columns, scale=scale, seed=columns)
    if masked and columns > 1:
        x[:, ::2] = -math.inf
    close(exponential.softmax(x), mx.softmax(x, axis=-1))
    close(exponential.logsumexp(x), mx.logsumexp(x, axis=-1))
    close(exponential.logsumexp(x, keepdims=True), mx.logsumexp(x, axis=-1, keepdims=True))
    close(exponential.log_softmax(x), x - mx.logsumexp(x, axis=-1, keepdims=True))


def test_softmax_over_another_axis_is_mlx_s() -> None:
    x = normal(3, 4)
    assert mx.array_equal(exponential.softmax(x, axis=0), mx.softmax(x, axis=0))
    assert mx.array_equal(exponential.logsumexp(x, axis=0), mx.logsumexp(x, axis=0))


def test_row_sum_of_more_than_the_cache_holds() -> None:
    x = normal(2100, 512)
    close(exponential.row_sum(x), x.sum(axis=-1, keepdims=True), 1e-4)
    assert mx.array_equal(exponential.row_max(x), x.max(axis=-1, keepdims=True))


# activations


@pytest.mark.parametrize("size", SIZES)
def test_swiglu(each_way: None, size: int) -> None:
    gate, up = normal(size, scale=10), normal(size, seed=1)
    gate[:3] = mx.array([-200.0, 200.0, 0.0])
    close(activations.swiglu(gate, up), mlx_lm_activations.swiglu(gate, up))
    both = normal(4, 2 * size)
    gate, up = mx.split(both, 2, axis=-1)
    close(activations.swiglu(gate, up), nn.silu(gate) * up)


def test_swiglu_in_other_types_is_mlx_s() -> None:
    gate, up = normal(5).astype(mx.bfloat16), normal(5, seed=1).astype(mx.bfloat16)
    assert mx.array_equal(activations.swiglu(gate, up), nn.silu(gate) * up)
    found = activations.precise_swiglu(gate, gate, up)
    close(found, mlx_lm_activations.precise_swiglu(gate, gate, up), 0.01)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_approx"])
def test_activations_of_nn(name: str) -> None:
    ours, theirs = getattr(activations, name), getattr(nn, name)
    x = mx.concatenate([normal(5000, scale=3), mx.array([-50.0, -12.0, 0.0, 12.0, 50.0])])
    close(ours(x), theirs(x), 1e-6)
    half = x.astype(mx.float16)
    assert mx.array_equal(ours(half), theirs(half))
    compiled = mx.compile(lambda y: ours(y) * 2, shapeless=True)
    close(compiled(x), theirs(x) * 2, 2e-6)


# attention


@pytest.fixture(autouse=True, scope="module")
def few_scores_too() -> Iterator[None]:
    """Small examples would be left to mx.fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_FEW_SCORES", 0)
        yield


def plain_attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, **options)


def slots(batch: int, heads: int, columns: int, dim: int, seed: int) -> mx.array:
    """A view of a longer and wider buffer, as the batch's cache gives it."""
    return normal(batch + 2, heads, columns + 9, dim, seed=seed)[1:-1, :, :columns]


def make_mask(kind: str, batch: int, heads: int, width: int, columns: int) -> Any:
    if kind in ("none", "causal"):
        return None if kind == "none" else kind
    rng = np.random.default_rng(columns)
    shape = {"rows": (batch, 1), "heads": (batch, heads), "shared": ()}[kind.split("+")[0]]
    visible = rng.random((*shape, width, columns)) < 0.6
    visible[..., 0] = True
    if kind.endswith("+bias"):
        return mx.array(np.where(visible, rng.random(visible.shape), -np.inf).astype(np.float32))
    return mx.array(visible)


KINDS = ["none", "causal", "rows", "heads", "shared", "rows+bias", "heads+bias", "shared+bias"]


@given(
    batch=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.sampled_from([1, 2, 5, 33]),
    more=st.sampled_from([0, 1, 30, 260]),
    dims=st.sampled_from([(8, 8), (64, 64), (24, 16)]),
    kind=st.sampled_from(KINDS),
    sinks=st.booleans(),
)
def test_attention(
    batch: int,
    kv_heads: int,
    group: int,
    width: int,
    more: int,
    dims: tuple[int, int],
    kind: str,
    sinks: bool,
) -> None:
    heads, columns = kv_heads * group, width + more
    q = normal(batch, width, heads, dims[0], scale=2).swapaxes(1, 2)
    k, v = slots(batch, kv_heads, columns, dims[0], 1), slots(batch, kv_heads, columns, dims[1], 2)
    mask = make_mask(kind, batch, heads, width, columns)
    options: dict[str, Any] = {"scale": dims[0] ** -0.5, "mask": mask}
    options["sinks"] = normal(heads, seed=3) if sinks else None
    close(attention(q, k, v, **options), plain_attention(q, k, v, **options))


@pytest.mark.parametrize(("batch", "width", "columns"), [(32, 1, 128), (2, 128, 256), (1, 1, 4096)])
def test_attention_of_serving_sizes(each_way: None, batch: int, width: int, columns: int) -> None:
    q = normal(batch, 8, width, 64)
    k, v = slots(batch, 4, columns, 64, 1), slots(batch, 4, columns, 64, 2)
    lengths = np.random.default_rng(0).integers(1, columns - width + 2, batch)
    visible = np.arange(columns) < (lengths[:, None] + np.arange(width))[..., None]
    options: dict[str, Any] = {"scale": 0.125, "mask": mx.array(visible[:, None])}
    close(attention(q, k, v, **options), plain_attention(q, k, v, **options))


def test_masked_columns_do_not_matter(each_way: None) -> None:
    q, k, v = normal(4, 4, 1, 32), normal(4, 2, 700, 32, seed=1), normal(4, 2, 700, 32, seed=2)
    mask = mx.array(np.broadcast_to(np.arange(700) < 600, (4, 1, 1, 700)))
    expected = attention(q, k, v, scale=1.0, mask=mask)
    k[:, :, 600:], v[:, :, 600:] = 1e4, -1e30
    assert mx.array_equal(attention(q, k, v, scale=1.0, mask=mask), expected)


def test_a_query_that_sees_nothing_is_finite() -> None:
    q, k = normal(2, 2, 3, 8), normal(2, 2, 5, 8)
    mask = mx.zeros((2, 1, 3, 5), dtype=mx.bool_)
    assert mx.isfinite(attention(q, k, k, scale=1.0, mask=mask)).all()


def test_large_scores_do_not_overflow(each_way: None) -> None:
    q, k = normal(2, 4, 40, 64, scale=30), normal(2, 4, 80, 64, scale=30)
    options: dict[str, Any] = {"scale": 1.0, "mask": "causal"}
    close(attention(q, k, k, **options), plain_attention(q, k, k, **options), 1e-3)


def test_few_scores_are_left_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_FEW_SCORES", 4096)
    q, k = normal(1, 8, 1, 64), normal(1, 4, 128, 64, seed=1)
    assert mx.array_equal(attention(q, k, k, scale=1.0), plain_attention(q, k, k, scale=1.0))


def test_attention_in_half_precision_is_mlx_s() -> None:
    q = normal(1, 2, 1, 8).astype(mx.float16)
    assert mx.array_equal(attention(q, q, q, scale=1.0), plain_attention(q, q, q, scale=1.0))


# rotary embeddings and norms

LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": 256}
ROPES: dict[str, Any] = {
    "plain": lambda: nn.RoPE(16),
    "scaled": lambda: nn.RoPE(16, base=5e5, scale=0.25),
    "llama3": lambda: rope_utils.Llama3RoPE(16, scaling_config=LLAMA3),
    "yarn": lambda: rope_utils.YarnRoPE(16, scaling_factor=4.0, mscale_all_dim=0.5),
    "long": lambda: rope_utils.SuScaledRoPE(16, long_factor=[1.0 + i for i in range(8)]),
    "proportional": lambda: rope_utils.ProportionalRoPE(16, 8),
}


def holder(*parts: Any, **named: Any) -> Any:
    """A module that consists of these."""
    module: Any = nn.Module()
    module.parts = list(parts)
    for name, value in named.items():
        setattr(module, name, value)
    return module


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("dim", [16, 24])
def test_rope_from_a_table(name: str, dim: int) -> None:
    plain, tabled = ROPES[name](), ROPES[name]()
    model = holder(tabled)
    assert rope.use_tables(model) == 1
    for width, offset in [(1, 0), (3, 1500), (2, mx.array([0, 40])), (1, mx.array([7, 3000]))]:
        x = normal(2, 3, width, dim)
        close(tabled(x, offset=offset), plain(x, offset=offset), 1e-4)
    rope.drop_tables(model)
    assert type(tabled) is type(plain)
    assert not hasattr(tabled, "table")


def test_layers_share_a_table_only_if_they_are_the_same() -> None:
    parts = [nn.RoPE(16), nn.RoPE(16), nn.RoPE(16, base=5e5), nn.RoPE(8)]
    assert rope.use_tables(holder(*parts)) == 4
    assert parts[0].table is parts[1].table
    assert len({id(part.table) for part in parts}) == 3


def test_rope_left_alone() -> None:
    parts = [nn.RoPE(16, traditional=True), rope_utils.DynamicNTKScalingRoPE(16, 64, False, 1e4, 2)]
    assert rope.use_tables(holder(*parts)) == 0


def test_rope_sees_an_offset_that_changed_in_place() -> None:
    tabled: Any = nn.RoPE(16)
    plain: Any = nn.RoPE(16)
    x, offset = normal(2, 1, 1, 16), mx.array([3, 5])
    rope.use_tables(holder(tabled))
    tabled(x, offset=offset)
    offset += 4
    close(tabled(x, offset=offset), plain(x, offset=mx.array([7, 9])))


def test_rope_where_the_table_does_not_reach() -> None:
    tabled: Any = nn.RoPE(16)
    plain: Any = nn.RoPE(16)
    x = normal(1, 1, 2, 16)
    rope.use_tables(holder(tabled))
    traced = mx.compile(lambda y, offset: tabled(y, offset=offset))
    close(traced(x, mx.array([5])), plain(x, offset=5))
    assert mx.array_equal(tabled(x, offset=1 << 20), plain(x, offset=1 << 20))
    half = x.astype(mx.float16)
    assert mx.array_equal(tabled(half, offset=9), plain(half, offset=9))
    assert mx.isfinite(tabled(x, offset=mx.array([-3]))).all()


@pytest.mark.parametrize("shape", [(512,), (1, 1, 64), (8, 1, 512), (3, 40, 100)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    plain, ours = nn.RMSNorm(shape[-1], eps=1e-3), RowRMSNorm(shape[-1], eps=1e-3)
    plain.weight = ours.weight = normal(shape[-1], seed=1)
    x = normal(*shape, scale=5)
    close(ours(x), plain(x))
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(ours(half), plain(half))


# weights


def two_layers(tied: bool) -> Any:
    """An embedding and two linear layers, two of them with 1024 inputs."""
    return holder(
        args=type("Args", (), {"tie_word_embeddings": tied}),
        embed=nn.Embedding(500, 1024),
        up=nn.Linear(1024, 300, bias=True),
        down=nn.Linear(300, 1024),
    )


def weights(model: Any) -> dict[str, mx.array]:
    return dict(cast(Any, tree_flatten(model.parameters())))


@pytest.fixture
def plain_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where our own products could not be compiled."""
    monkeypatch.setattr(blas, "info", lambda: blas.BlasInfo("OpenBLAS", "wheel"))


def test_our_own_products_want_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own = blas.BlasInfo("OpenBLAS", "wheel", own_products=True)
    monkeypatch.setattr(blas, "info", lambda: own)
    assert linear.optimize_linears(two_layers(tied=True)) == 0


@pytest.mark.usefixtures("plain_blas")
def test_only_the_layout_of_weights_changes() -> None:
    model = two_layers(tied=True)
    before = {name: np.array(value) for name, value in weights(model).items()}
    x, tokens = normal(3, 1024), mx.array([[0, 499], [7, 7]])
    expected = [model.up(x), model.embed.as_linear(x), model.embed(tokens)]
    assert linear.optimize_linears(model) == 2
    after = weights(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(np.array(after[name]), value)
    for found, wanted in zip(
        [model.up(x), model.embed.as_linear(x), model.embed(tokens)], expected, strict=True
    ):
        close(found, wanted, 1e-4)


@pytest.mark.usefixtures("plain_blas")
def test_weights_that_do_not_gain_stay() -> None:
    model = two_layers(tied=False)
    before = model.embed.weight
    assert linear.optimize_linears(model) == 1  # up: 1024 inputs
    assert model.embed.weight is before


@pytest.mark.usefixtures("plain_blas")
def test_updates_reach_a_weight_of_another_layout() -> None:
    model = two_layers(tied=False)
    linear.optimize_linears(model)
    model.update({"up": {"weight": mx.ones((300, 1024))}})
    close(model.up(mx.ones((1, 1024))) - model.up.bias, mx.full((1, 300), 1024.0))


# the switch

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
ARCHITECTURES = {"llama": llama, "qwen3": qwen3, "gemma": gemma}


def small_model(name: str) -> Any:
    architecture = ARCHITECTURES[name]
    mx.random.seed(0)
    model = architecture.Model(architecture.ModelArgs.from_dict(SMALL | {"model_type": name}))
    mx.eval(model.parameters())
    return model


@pytest.fixture
def mlx_lm_as_imported() -> Iterator[None]:
    """Engines of other tests have hooks in the same modules: take them out, put them back."""
    kept = [(module, dict(vars(module))) for module in ARCHITECTURES.values()]
    for name in ARCHITECTURES:
        replacements.uninstall(small_model(name))
    yield
    for module, values in kept:
        vars(module).update(values)


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacements, "is_slow_cpu", lambda: True)


def logits(model: Any) -> mx.array:
    """Of a prefill and of a step on mlx-lm's batched cache, left padding included."""
    caches = [BatchKVCache([0, 2]) for _ in model.layers]
    first = model(mx.array([[1, 2, 3, 4], [0, 0, 5, 6]]), cache=caches)[:, -1:]
    return mx.concatenate([first, model(mx.array([[7], [8]]), cache=caches)], axis=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_install_and_uninstall(
    slow_cpu: None, mlx_lm_as_imported: None, each_way: None, name: str
) -> None:
    model = small_model(name)
    names = vars(ARCHITECTURES[name])
    before, expected = dict(names), logits(model)
    assert replacements.install(model)
    assert replacements.install(model)
    changed = {key for key, value in names.items() if value is not before[key]}
    assert changed == {"nn", "scaled_dot_product_attention"} | ({"swiglu"} & set(before))
    close(logits(model), expected, 1e-4)
    replacements.uninstall(model)
    assert all(names[key] is before[key] for key in before)
    assert all(type(part) is not RowRMSNorm for part in model.modules())
    assert mx.array_equal(logits(model), expected)


def test_nothing_is_installed_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = type("Device", (), {"type": mx.DeviceType.gpu})
    monkeypatch.setattr(mx, "default_device", lambda: gpu)
    assert not replacements.is_slow_cpu()
    model, before = small_model("llama"), dict(vars(llama))
    assert not replacements.install(model)
    assert vars(llama) == before
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert not replacements.is_slow_cpu()


def test_faster_nn_is_nn_otherwise() -> None:
    assert replacements._FASTER_NN.Linear is nn.Linear
    with pytest.raises(AttributeError):
        replacements._FASTER_NN.no_such_layer  # noqa: B018


class AttendingCache(KVCache):
    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> Any:
        self.seen = (keys.shape, sorted(options))
        return mx.zeros_like(queries)


def test_a_cache_may_attend_itself(mlx_lm_as_imported: None) -> None:
    model, make = small_model("llama"), cast(Any, AttendingCache)
    install_attention(model)
    caches: list[Any] = [make() for _ in model.layers]
    model(mx.array([[1, 2, 3]]), cache=caches)
    assert caches[1].seen == ((1, 2, 3, 16), ["compute", "mask", "scale", "sinks"])
    uninstall_attention(model)
    assert llama.scaled_dot_product_attention is scaled_dot_product_attention


def test_the_hook_keeps_what_was_installed(mlx_lm_as_imported: None) -> None:
    model, calls = small_model("llama"), []

    def counted(*arrays: mx.array, **options: Any) -> mx.array:
        calls.append(options["mask"])
        return attention(*arrays, **options)

    install_attention(model, counted)
    install_attention(model)
    model(mx.array([[1, 2, 3]]))
    assert calls == ["causal"] * 2
    install_attention(model, attention)
    model(mx.array([[1]]))
    assert len(calls) == 2


def test_quantised_caches_keep_mlx_lm_s_attention() -> None:
    def refuse(*_: Any, **__: Any) -> mx.array:
        raise AssertionError("called for a quantised cache")

    cache = QuantizedKVCache(group_size=32, bits=8)
    q, k = normal(1, 2, 1, 32), normal(1, 2, 4, 32, seed=1)
    keys, values = cache.update_and_fetch(k, k)
    found = AttentionHook(refuse)(q, keys, values, cache, 1.0, None)
    close(found, plain_attention(q, k, k, scale=1.0), 0.05)


# the compiler and the allocator


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    fusing.stop_fusing()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not fusing.compile_kernels()
    assert not fusing.is_fusing()


def test_a_broken_compiler_switches_compilation_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: fusing.Fused) -> None:
        raise RuntimeError("cc1plus not found")

    disabled = []
    fusing.stop_fusing()
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/g++")
    monkeypatch.setattr(fusing.Fused, "compile", fail)
    monkeypatch.setattr(mx, "disable_compile", lambda: disabled.append(True))
    assert not fusing.compile_kernels()
    assert disabled
    assert not fusing.is_fusing()
    assert "cc1plus not found" in caplog.text


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_glibc_takes_the_thresholds() -> None:
    assert allocator.keep_freed_memory()
