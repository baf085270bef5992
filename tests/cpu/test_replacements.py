"""The switch: what is installed in mlx-lm's modules, and taken out again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import gemma, llama, qwen3
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import BatchKVCache, KVCache, QuantizedKVCache

from mlx_parallm.cpu.attention import attention
from mlx_parallm.cpu.norm import RowRMSNorm
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.attention import (
    AttentionHook,
    install_attention,
    uninstall_attention,
)
from tests.cpu.arrays import close, normal, plain_attention

pytestmark = pytest.mark.usefixtures("few_scores_too")

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
