"""Recurrent layers that mlx-lm ends at the last column, ended at each row's last token.

A span is padded on the right (see base.py), so a state must be the one after a
row's own last token: convolutions keep the inputs before it (`_kept`), and
recurrences stand still where `make_mask` says padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import bailing_hybrid
from mlx_lm.models.activations import swiglu
from mlx_lm.models.ssm import ssm_update


def _window(state: mx.array | None, inputs: mx.array, keep: int) -> mx.array:
    """The `keep` inputs before this span, zeros at the start of a text, and its own."""
    if state is None:
        state = mx.zeros((inputs.shape[0], keep, *inputs.shape[2:]), inputs.dtype)
    return mx.concatenate([state, inputs], axis=1)


def _kept(window: mx.array, cache: Any, keep: int) -> mx.array:
    """The last `keep` real inputs of each row of a window."""
    if cache.lengths is None:
        return window[:, window.shape[1] - keep :]
    places = cache.lengths[:, None] + mx.arange(keep)
    return mx.take_along_axis(window, places.reshape(*places.shape, *[1] * (window.ndim - 2)), 1)


def _real(cache: Any, width: int, axes: int) -> mx.array | None:
    """(B, T, 1, ...) bool with `axes` axes, true for real tokens; None: all are."""
    mask = cache.make_mask(width)
    return None if mask is None else mask.reshape(*mask.shape, *[1] * (axes - 2))


# mamba, jamba: one selective scan, step by step.


def _mamba_block(self: Any, x: mx.array, cache: Any) -> Any:
    if cache is None:
        return self.plain_call(x, None)
    keep = self.conv_kernel_size - 1
    x, z = self.in_proj(x).split(2, axis=-1)
    window = _window(cache[0], x, keep)
    cache[0] = _kept(window, cache, keep)
    x = nn.silu(self.conv1d(window))
    a, state, real, outputs = -mx.exp(self.A_log), cache[1], _real(cache, x.shape[1], 4), []
    for t in range(x.shape[1]):
        y, following = self.ssm_step(x[:, t], a, state)
        if real is not None:
            before = mx.zeros_like(following) if state is None else state
            following = mx.where(real[:, t], following, before)
        state = following
        outputs.append(y)
    cache[1] = state
    return self.out_proj(swiglu(z, mx.stack(outputs, axis=1)))


def _jamba_mixer(self: Any, x: mx.array, cache: Any) -> Any:
    if cache is None or cache.lengths is None:
        return self.plain_call(x, cache)
    keep = self.conv_kernel_size - 1
    x, z = self.in_proj(x).split(2, axis=-1)
    window = _window(cache[0], x, keep)
    cache[0] = _kept(window, cache, keep)
    x = nn.silu(self.conv1d(window))
    y, cache[1] = _jamba_scan(self, x, cache[1], _real(cache, x.shape[1], 3))
    return self.out_proj(swiglu(z, y))


def _jamba_scan(self: Any, x: mx.array, state: mx.array | None, real: mx.array | None) -> Any:
    """JambaMambaMixer.ssm_step, where no time passes for padding."""
    parts = mx.split(
        self.x_proj(x), [self.time_step_rank, self.time_step_rank + self.ssm_state_size], axis=-1
    )
    norms = (self.dt_layernorm, self.b_layernorm, self.c_layernorm)
    delta, b, c = (norm(part) for norm, part in zip(norms, parts, strict=True))
    delta = nn.softplus(self.dt_proj(delta))
    if real is not None:
        delta = mx.where(real, delta, 0)
    added = (delta * x)[..., None] * b[..., None, :]
    decay = mx.exp(delta[..., None] * -mx.exp(self.A_log))
    states = []
    for t in range(x.shape[1]):
        state = added[:, t] if state is None else state * decay[:, t] + added[:, t]
        states.append(state)
    y = (mx.stack(states, axis=1) @ c[..., None]).squeeze(-1)
    return y + self.D * x, states[-1]


# nemotron_h: the only Mamba2 of mlx-lm's that does not say where rows end.


def _nemotron_ssm(
    self: Any, x: mx.array, b: mx.array, c: mx.array, dt: mx.array, cache: Any, mask: Any
) -> Any:
    if cache is None:
        return self.plain_ssm(x, b, c, dt, cache, mask)
    batch, width, _ = x.shape
    y, cache[1] = ssm_update(
        x.reshape(batch, width, self.num_heads, self.head_dim),
        self.A_log,
        b.reshape(batch, width, self.n_groups, self.ssm_state_size),
        c.reshape(batch, width, self.n_groups, self.ssm_state_size),
        self.D.astype(x.dtype),
        dt,
        self.dt_bias,
        cache[1],
        self.time_step_limit,
        mask,
        cache.lengths,
    )
    return y.reshape(batch, width, self.intermediate_size)


# olmo_hybrid: its delta rule takes the mask, its convolutions do not.


def _olmo_hybrid_conv(
    self: Any, x: mx.array, conv: Any, state: mx.array | None, cache: Any, slot: int
) -> Any:
    keep = self.conv_kernel_size - 1
    window = _window(state, x, keep)
    if cache is not None:
        cache[slot] = mx.contiguous(_kept(window, cache, keep))
    return nn.silu(conv(window))


# rwkv7: shifts by one token, and a recurrence without a mask.


def _rwkv7_time_mixing(self: Any, x: mx.array, v_first: mx.array | None, cache: Any) -> Any:
    self._real = None if cache is None else _real(cache, x.shape[1], 4)
    if self._real is None:
        return self.plain_call(x, v_first, cache)
    window = _window(cache[0], x, 1)
    output = self.plain_call(x, v_first, cache)
    cache[0] = _kept(window, cache, 1)
    return output


def _rwkv7_recurrence(
    self: Any,
    r: mx.array,
    w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array | None,
) -> Any:
    real, self._real = self._real, None
    if real is not None:
        w, k, b = mx.where(real, w, 1), mx.where(real, k, 0), mx.where(real, b, 0)
    return self.plain_wkv7(r, w, k, v, a, b, state)


def _rwkv7_channel_mixing(self: Any, x: mx.array, cache: Any) -> Any:
    if cache is None or cache.lengths is None:
        return self.plain_call(x, cache)
    window = _window(cache[2], x, 1)
    output = self.plain_call(x, cache)
    cache[2] = _kept(window, cache, 1)
    return output


# recurrent_gemma: the first token of a text is not scaled, whichever row it is in.


def _griffin_block(self: Any, x: mx.array, cache: Any = None, mask: Any = None) -> Any:
    if cache is None or not hasattr(cache, "offset"):
        return self.plain_call(x, cache, mask)
    y = nn.gelu_approx(self.linear_y(x))
    x = self.linear_x(x)
    keep = self.conv1d_temporal_width - 1
    window = _window(cache[0], x, keep)
    cache[0] = _kept(window, cache, keep)
    # Given the inputs before the span, the convolution needs no padding of its own.
    x, _ = self.conv_1d(window[:, keep:], window[:, :keep])
    x, cache[1] = _griffin_lru(self.rg_lru, x, cache)
    return self.linear_out(x * y)


def _griffin_lru(lru: Any, x: mx.array, cache: Any) -> Any:
    """RGLRU over rows that start and end where they like."""
    batch, width, _ = x.shape

    def gate(weight: mx.array, bias: mx.array) -> Any:
        heads = x.reshape(batch, width, lru.num_heads, lru.head_dim).swapaxes(1, 2)
        return mx.sigmoid(((heads @ weight).swapaxes(1, 2) + bias).flatten(2, 3))

    gated = x * gate(lru.input_gate_weight, lru.input_gate_bias)
    log_a = -8.0 * gate(lru.recurrent_gate_weight, lru.recurrent_gate_bias)
    log_a = log_a * nn.softplus(lru.recurrent_param)
    first = (cache.offset[:, None] + mx.arange(width) == 0)[..., None]
    added = gated * mx.where(first, 1.0, mx.sqrt(1 - mx.exp(2 * log_a))).astype(x.dtype)
    real = _real(cache, width, 3)
    if real is not None:
        added, log_a = mx.where(real, added, 0), mx.where(real, log_a, 0)
    decay = mx.exp(log_a)
    state = mx.zeros_like(x[:, 0]) if cache[1] is None else cache[1]
    states = []
    for t in range(width):
        state = decay[:, t] * state + added[:, t]
        states.append(state)
    return mx.stack(states, axis=1), state


# baichuan_m1: K and V of the token before are mixed in.


def _baichuan_attention(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> Any:
    if cache is None or cache[0] is None or cache[0].lengths is None:
        return self.plain_call(x, mask, cache)
    states = cache[0]
    before = states[0], states[1]
    output = self.plain_call(x, mask, cache)
    # The states again, from each row's last token: mlx-lm took the last column's.
    batch, width, dim = x.shape
    parts = mx.split(self.W_pack(x), [dim, dim + self.num_kv_heads * self.head_dim], axis=-1)[1:]
    for index, (part, state) in enumerate(zip(parts, before, strict=True)):
        new = part.reshape(batch, width, self.num_kv_heads, self.head_dim)
        window = _window(None if state is None else state.swapaxes(1, 2), new, 1)
        states[index] = _kept(window, states, 1).swapaxes(1, 2)
    return output


# longcat_flash_ngram: embeddings of the last tokens together.


def _ngram_embedding(self: Any, input_ids: mx.array, cache: Any = None) -> Any:
    if cache is None or self.n < 2:
        return self.plain_call(input_ids, cache)
    keep = self.n - 1
    window = _window(cache[0], input_ids.astype(mx.int64), keep)
    cache[0] = window[:, :keep]
    output = self.plain_call(input_ids, cache)
    cache[0] = _kept(window, cache, keep)
    return output


RECURRENT: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "baichuan_m1.Attention": {"__call__": _baichuan_attention},
    # The same layer, whose recurrence takes the mask.
    "bailing_moe_linear.LinearAttention": {"__call__": bailing_hybrid.LinearAttention.__call__},
    "jamba.JambaMambaMixer": {"__call__": _jamba_mixer},
    "longcat_flash_ngram.NgramEmbedding": {"__call__": _ngram_embedding},
    "mamba.MambaBlock": {"__call__": _mamba_block},
    "nemotron_h.NemotronHMamba2Mixer": {"_ssm": _nemotron_ssm},
    "olmo_hybrid.GatedDeltaNet": {"_apply_conv1d": _olmo_hybrid_conv},
    "recurrent_gemma.RecurrentBlock": {"__call__": _griffin_block},
    "rwkv7.Rwkv7ChannelMixing": {"__call__": _rwkv7_channel_mixing},
    "rwkv7.Rwkv7TimeMixing": {"__call__": _rwkv7_time_mixing, "_wkv7": _rwkv7_recurrence},
}
