"""Makes mlx-lm's model code hold for a batch where it holds for one sequence only.

Nearly all of mlx-lm's models take our batched caches as they are: they read
`offset` as an array, pass masks on and end states at `lengths`. The others are
here. `adapt` gives the modules concerned, of one model, a subclass with the
methods below; `plain_<method>` is what mlx-lm wrote. mlx-lm's own classes are not
touched, and with its own caches an adapted model computes what it did before.

Seen with mlx-lm 0.32.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache
from mlx_lm.utils import MODEL_REMAPPING

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.adapting.adapt_recurrent import RECURRENT

UNSUPPORTED: Mapping[str, str] = {
    "deepseek_v41": "its compressed attention groups tokens at one position for the whole batch",
    "olmo": "mlx-lm's attention adds the string 'causal' to its scores",
    "phi3small": "mlx-lm's block-sparse attention adds its boolean mask to the scores",
}
NEEDS_METAL = frozenset({"bitnet", "muse_spark"})

Methods = Mapping[str, Callable[..., Any]]


def check_supported(config: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, what cannot be batched correctly.

    Args:
        config: config.json.

    Raises:
        ModelLoadError: with the reason.
    """
    model_type = str(config.get("model_type"))
    model_type = MODEL_REMAPPING.get(model_type, model_type)
    if model_type in UNSUPPORTED:
        raise ModelLoadError(f"{model_type} is not supported: {UNSUPPORTED[model_type]}")
    if model_type in NEEDS_METAL and not mx.metal.is_available():
        raise ModelLoadError(f"{model_type} is not supported here: it needs a Metal GPU")


def adapt(model: Any) -> Any:
    """Make a freshly loaded mlx-lm model fit for batched caches; idempotent.

    Returns:
        the same model.
    """
    for module in model.modules():
        methods = _METHODS.get(_name(type(module)))
        if methods is not None:
            module.__class__ = _subclass(type(module), methods)
    return model


def _name(kind: type) -> str:
    """Such as "gemma2.Attention"; empty for a class that mlx-lm does not define."""
    package, _, module = kind.__module__.rpartition(".")
    return f"{module}.{kind.__name__}" if package == "mlx_lm.models" else ""


def _subclass(kind: type, methods: Methods) -> type:
    plain = {f"plain_{name.strip('_')}": getattr(kind, name, None) for name in methods}
    return type(kind.__name__, (kind,), {**plain, **methods, "__module__": __name__})


def _positions(cache: Any, width: int) -> mx.array:
    """(B, T) or (T,) int32: the position of each new token."""
    return mx.array(cache.offset)[..., None] + mx.arange(width)


# gemma2: scores have five axes, (B, kv_heads, repeats, T, columns).


def _gemma2_attention(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
    if mask is not None and mask.ndim == 4 and self.repeats > 1:
        mask = mask[:, :, None]
    return self.plain_call(x, mask, cache)


# gemma4: the last layers attend to K and V of earlier ones, which are in those layers' caches.


def _gemma4_model(self: Any, inputs: Any = None, cache: Any = None, **how: Any) -> Any:
    if cache is not None:
        cache = cache + [_reader(cache[source]) for source in self.previous_kvs[len(cache) :]]
    return self.plain_call(inputs, cache, **how)


def _reader(cache: Any) -> Any:
    """What attends to another layer's K and V; None where these are handed from layer to layer."""
    return cache.reader() if hasattr(cache, "reader") else None


# gpt2, gpt_bigcode: learned positions. Padding may point behind their table.


def _learned_positions(table: Any, cache: Any, width: int) -> Any:
    return table(mx.minimum(_positions(cache, width), table.weight.shape[0] - 1))


def _gpt2_model(self: Any, inputs: mx.array, cache: Any = None) -> Any:
    if cache is None:
        return self.plain_call(inputs)
    h = self.wte(inputs) + _learned_positions(self.wpe, cache[0], inputs.shape[1])
    mask = create_attention_mask(h, cache[0])
    for layer, layer_cache in zip(self.h, cache, strict=True):
        h = layer(h, mask, cache=layer_cache)
    return self.ln_f(h)


# rope_scaling "dynamic": the base grows once a text is longer than the model's context.


def _dynamic_rope(self: Any, x: mx.array, offset: Any = 0) -> Any:
    if not isinstance(offset, mx.array) or offset.ndim == 0:
        return self.plain_call(x, offset)
    # No row is: the loader holds texts to the context. Only padding may go on.
    return mx.fast.rope(
        x, self.dims, traditional=self.traditional, base=self.base, scale=1.0, offset=offset
    )


# afm7: layers without K and V of their own take their offset from the keys' width.


def _afm7_model(self: Any, inputs: mx.array, cache: Any = None) -> Any:
    for layer in self.kv_reuse_layers:
        layer.self_attn._cache = None if cache is None else cache[-1]
    output = self.plain_call(inputs, cache)
    for layer in self.kv_reuse_layers:
        layer.self_attn._cache = None
    return output


def _afm7_reuse(self: Any, x: mx.array, keys: mx.array, values: mx.array, mask: Any = None) -> Any:
    batch, width, _ = x.shape
    if self._cache is None or isinstance(self._cache, KVCache):
        return self.plain_call(x, keys, values, mask)
    queries = self.q_proj(x).reshape(batch, width, self.n_heads, -1).transpose(0, 2, 1, 3)
    queries = self.q_norm(self.rope(queries, offset=self._cache.offset))
    output = scaled_dot_product_attention(
        queries, keys, values, cache=None, scale=self.scale, mask=mask
    )
    return self.out_proj(output.transpose(0, 2, 1, 3).reshape(batch, width, -1))


# llama4: attention within chunks of the text, whose cache mlx-lm cuts at the front.


def _llama4_make_cache(self: Any) -> list[KVCache]:
    return [KVCache() for _ in self.layers]


def _llama4_model(self: Any, inputs: mx.array, cache: Any = None) -> Any:
    if cache is None:
        return self.plain_call(inputs)
    h = self.embed_tokens(inputs)
    everything = create_attention_mask(h, cache[0])
    chunk = _chunk_mask(cache[0], inputs.shape[1], self.attention_chunk_size)
    for index, (layer, layer_cache) in enumerate(zip(self.layers, cache, strict=True)):
        h = layer(h, chunk if (index + 1) % 4 else everything, cache=layer_cache)
    return self.norm(h)


def _chunk_mask(cache: Any, width: int, chunk: int) -> mx.array:
    """(B, 1, T, columns) bool: earlier tokens of the same chunk; a column is a position."""
    allowed: mx.array = cache.make_mask(width, return_array=True)
    queries = _positions(cache, width) // chunk
    columns = mx.arange(allowed.shape[-1]) // chunk
    same = queries[..., None] == columns
    return allowed & (same[:, None] if same.ndim == 3 else same)


def _llama4_attention(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
    if self.use_rope or not self.attn_temperature_tuning or cache is None:
        return self.plain_call(x, mask, cache)
    batch, width, _ = x.shape
    heads = [
        projection(x).reshape(batch, width, count, -1).transpose(0, 2, 1, 3)
        for projection, count in (
            (self.q_proj, self.n_heads),
            (self.k_proj, self.n_kv_heads),
            (self.v_proj, self.n_kv_heads),
        )
    ]
    seen = mx.floor((_positions(cache, width) + 1) / self.floor_scale)
    scales = mx.log(seen + 1.0) * self.attn_scale + 1.0
    scales = scales[:, None, :, None] if scales.ndim == 2 else scales[:, None]
    queries = (heads[0] * scales).astype(x.dtype)
    keys, values = cache.update_and_fetch(heads[1], heads[2])
    output = scaled_dot_product_attention(
        queries, keys, values, cache=cache, scale=self.scale, mask=mask
    )
    return self.o_proj(output.transpose(0, 2, 1, 3).reshape(batch, width, -1))


# minimax_m3_vl: attends to whole blocks of keys, and always to the newest one.


def _minimax_m3_block_mask(self: Any, x: mx.array, mask: Any, offset: Any, cache: Any) -> Any:
    if cache is None:
        return self.plain_block_mask(x, mask, offset, cache)
    batch, width, _ = x.shape
    keys = self.index_k_proj(x).reshape(batch, width, 1, -1)
    keys = self.index_rope(self.index_k_norm(keys).transpose(0, 2, 1, 3), offset=offset)
    # Nothing reads the values; mlx-lm's have no columns at all.
    keys, _ = cache.update_and_fetch(keys, keys[..., :1])
    size, columns = self.index_block_size, keys.shape[2]
    if self.index_topk_blocks >= -(-columns // size):
        return mask
    queries = self.index_q_proj(x).reshape(batch, width, self.index_n_heads, -1)
    queries = self.index_rope(self.index_q_norm(queries).transpose(0, 2, 1, 3), offset=offset)
    allowed = mask if isinstance(mask, mx.array) else cache.make_mask(width, return_array=True)
    scores = queries.astype(mx.float32) @ keys.astype(mx.float32).swapaxes(-1, -2)
    blocks = _best_of_blocks(mx.where(allowed, scores, -mx.inf), size)
    # A column is a position, so every row's own newest block is known.
    newest = (_positions(cache, width) // size)[:, None, :, None]
    ids = mx.arange(blocks.shape[-1])
    local = (ids <= newest) & (ids > newest - self.index_local_blocks)
    blocks = mx.where(local, mx.inf, blocks)
    chosen = mx.argpartition(-blocks, kth=self.index_topk_blocks - 1, axis=-1)
    chosen = chosen[..., : self.index_topk_blocks]
    keep = mx.put_along_axis(mx.zeros(blocks.shape, mx.bool_), chosen, mx.array(True), axis=-1)
    keep = mx.repeat(keep, size, axis=-1)[..., :columns] & allowed
    return mx.repeat(keep, self.num_attention_heads // self.index_n_heads, axis=1)


def _best_of_blocks(scores: mx.array, size: int) -> mx.array:
    """(..., columns) to (..., blocks): the best score of each block of columns."""
    missing = -scores.shape[-1] % size
    if missing:
        padding = mx.full((*scores.shape[:-1], missing), -mx.inf, scores.dtype)
        scores = mx.concatenate([scores, padding], axis=-1)
    return mx.unflatten(scores, -1, (-1, size)).max(axis=-1)


_METHODS: Mapping[str, Methods] = {
    "afm7.AFMModel": {"__call__": _afm7_model},
    "afm7.KVReuseAttention": {"__call__": _afm7_reuse},
    "gemma2.Attention": {"__call__": _gemma2_attention},
    "gemma4_text.Gemma4TextModel": {"__call__": _gemma4_model},
    "gpt2.GPT2Model": {"__call__": _gpt2_model},
    "gpt_bigcode.GPTBigCodeModel": {"__call__": _gpt2_model},
    "llama4.Attention": {"__call__": _llama4_attention},
    "llama4.LlamaModel": {"__call__": _llama4_model},
    "llama4.Model": {"make_cache": _llama4_make_cache},
    "minimax_m3_vl.Attention": {"_block_mask": _minimax_m3_block_mask},
    "rope_utils.DynamicNTKScalingRoPE": {"__call__": _dynamic_rope},
    **RECURRENT,
}
