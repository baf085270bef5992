"""Shapes of the tensors of tiny models, by llama.cpp's names, for many families."""

from __future__ import annotations

from tests.models.tiny_gguf import EXPERTS, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, WIDTH, Shapes

PER_LAYER = 32
GLOBAL_HEAD = 2 * HEAD
SPARSE = 1024


def weights(**shapes: tuple[int, ...]) -> Shapes:
    """Names with .weight behind them."""
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def attention(
    heads: int = HEADS, kv: int = KV_HEADS, head: int = HEAD, *, norms: bool = False
) -> Shapes:
    found = weights(
        attn_norm=(WIDTH,),
        attn_q=(heads * head, WIDTH),
        attn_k=(kv * head, WIDTH),
        attn_v=(kv * head, WIDTH),
        attn_output=(WIDTH, heads * head),
    )
    return found | (weights(attn_q_norm=(head,), attn_k_norm=(head,)) if norms else {})


def mlp(hidden: int = HIDDEN) -> Shapes:
    return weights(ffn_gate=(hidden, WIDTH), ffn_up=(hidden, WIDTH), ffn_down=(WIDTH, hidden))


def whole(vocab: int, layers: list[Shapes], *, tied: bool = False) -> Shapes:
    """Layers, with what is around them."""
    found = weights(token_embd=(vocab, WIDTH), output_norm=(WIDTH,))
    if not tied:
        found |= weights(output=(vocab, WIDTH))
    for i, layer in enumerate(layers):
        found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return found


def _gemma4_layer(full: bool, kv: int) -> Shapes:
    around = ("ffn_norm", "post_attention_norm", "post_ffw_norm")
    return (
        attention(kv=kv, head=GLOBAL_HEAD if full else HEAD, norms=True)
        | weights(**dict.fromkeys(around, (WIDTH,)))
        | weights(layer_output_scale=(1,))
    )


def gemma4_small(vocab: int) -> Shapes:
    """As E2B: inputs for each layer, and three layers that share K and V with wide MLPs."""
    layers = [
        _gemma4_layer(i % 3 == 2, KV_HEADS)
        | mlp(HIDDEN if i < LAYERS // 2 else 2 * HIDDEN)
        | weights(inp_gate=(PER_LAYER, WIDTH), proj=(WIDTH, PER_LAYER), post_norm=(WIDTH,))
        for i in range(LAYERS)
    ]
    return (
        whole(vocab, layers, tied=True)
        | weights(
            per_layer_token_embd=(vocab, LAYERS * PER_LAYER),
            per_layer_model_proj=(LAYERS * PER_LAYER, WIDTH),
            per_layer_proj_norm=(PER_LAYER,),
        )
        | weights(rope_freqs=(GLOBAL_HEAD // 2,))
    )


def gemma4_large(vocab: int, *, fused: bool) -> Shapes:
    """As 26B-A4B: experts beside an MLP, and layers that see all have one head of K and no V."""
    layers = []
    for i in range(LAYERS):
        layer = _gemma4_layer(i % 3 == 2, 1 if i % 3 == 2 else KV_HEADS) | mlp()
        if i % 3 == 2:
            del layer["attn_v.weight"]
        layers.append(layer | _gemma4_experts(fused))
    return whole(vocab, layers, tied=True) | weights(rope_freqs=(GLOBAL_HEAD // 2,))


def _gemma4_experts(fused: bool) -> Shapes:
    up = (EXPERTS, HIDDEN, WIDTH)
    norms = ("pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
    return (
        weights(**dict.fromkeys(norms, (WIDTH,)))
        | weights(ffn_gate_inp=(EXPERTS, WIDTH), ffn_down_exps=(EXPERTS, WIDTH, HIDDEN))
        | {"ffn_gate_inp.scale": (WIDTH,), "ffn_down_exps.scale": (EXPERTS,)}
        | (
            weights(ffn_gate_up_exps=(EXPERTS, 2 * HIDDEN, WIDTH))
            if fused
            else weights(ffn_gate_exps=up, ffn_up_exps=up)
        )
    )


def b_and_a() -> Shapes:
    """Both figures of each head of linear attention in one tensor, as Qwen3-Next has them."""
    found: Shapes = {}
    for at in (f"blk.{i}" for i in range(LAYERS) if i % 3 != 2):
        found |= {f"{at}.ssm_beta.weight": (), f"{at}.ssm_alpha.weight": ()}
        found[f"{at}.ssm_ba.weight"] = (8, WIDTH)
    return found


def mamba_columns() -> Shapes:
    """Figures of Mamba's heads as a column, its norm as a row."""
    found: Shapes = {}
    for at in (f"blk.{i}" for i in range(LAYERS) if i % 3 != 2):
        found |= {f"{at}.ssm_a": (8, 1), f"{at}.ssm_d": (8, 1), f"{at}.ssm_norm.weight": (1, 128)}
    return found


def guessing_layer(shapes: Shapes) -> Shapes:
    """One more layer, which guesses the token after the next: as the last, and what it reads."""
    last = f"blk.{LAYERS - 1}."
    found = {
        name.replace(last, f"blk.{LAYERS}."): shape
        for name, shape in shapes.items()
        if name.startswith(last)
    }
    own = {"eh_proj": (WIDTH, 2 * WIDTH), "enorm": (WIDTH,), "hnorm": (WIDTH,)}
    own["shared_head_norm"] = (WIDTH,)
    return found | {f"blk.{LAYERS}.nextn.{name}.weight": shape for name, shape in own.items()}


def _encoder(vocab: int, parts: Shapes) -> Shapes:
    names = ("attn_output_norm", "layer_output_norm")
    norms = {f"{name}.{part}": (WIDTH,) for name in names for part in ("weight", "bias")}
    found = weights(token_embd=(vocab, WIDTH), token_embd_norm=(WIDTH,))
    found["token_embd_norm.bias"] = (WIDTH,)
    for i in range(LAYERS):
        found |= {f"blk.{i}.{name}": shape for name, shape in (parts | norms).items()}
    return found


def nomic(vocab: int) -> Shapes:
    """Q, K and V in one, no biases."""
    square = weights(attn_qkv=(3 * WIDTH, WIDTH), attn_output=(WIDTH, WIDTH))
    return _encoder(vocab, square | mlp())


def jina(vocab: int, *, fused: bool) -> Shapes:
    """An MLP whose gate has no bias; `fused`: in one with what it opens."""
    parts: Shapes = {"ffn_down.bias": (WIDTH,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        parts |= {f"{name}.weight": (WIDTH, WIDTH), f"{name}.bias": (WIDTH,)}
    if fused:
        both = weights(ffn_up=(2 * HIDDEN, WIDTH), ffn_down=(WIDTH, HIDDEN))
        return _encoder(vocab, parts | both)
    return _encoder(vocab, parts | mlp())


def gemma3n(vocab: int, layers: int) -> Shapes:
    """With the only sizes that llama.cpp knows: 4 inputs, 256 numbers for each layer, rank 64."""
    around = ("ffn_norm", "post_attention_norm", "post_ffw_norm", "post_norm", "laurel_post_norm")
    layer = attention(norms=True) | mlp(SPARSE) | weights(**dict.fromkeys(around, (WIDTH,)))
    layer |= weights(inp_gate=(256, WIDTH), proj=(WIDTH, 256))
    layer |= weights(altup_correct_coef=(4, 4), altup_correct_scale=(WIDTH,))
    layer |= weights(altup_predict_coef=(16, 4), altup_router=(4, WIDTH))
    layer |= weights(altup_router_norm=(WIDTH,), laurel_l=(64, WIDTH), laurel_r=(WIDTH, 64))
    stacked = weights(altup_proj=(3, WIDTH, WIDTH), altup_unembd_proj=(3, WIDTH, WIDTH))
    return (
        whole(vocab, [layer] * layers, tied=True)
        | stacked
        | weights(
            per_layer_token_embd=(vocab, layers * 256),
            per_layer_model_proj=(layers * 256, WIDTH),
            per_layer_proj_norm=(256,),
        )
    )
