"""config.json as transformers 5 writes it, by the names that mlx-lm's models read.

Since version 5 rotary embeddings have one entry, `rope_parameters`, by type of layer where these
differ. Most of mlx-lm's models read `rope_theta` and `rope_scaling`, and would compute with
their defaults.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]
_LAYERS = ("full_attention", "sliding_attention")


def with_older_names(config: Config) -> Config:
    """The same config, also by the older names; what has those already stays as it is."""
    named = _named(config)
    text = named.get("text_config")
    if isinstance(text, dict):
        named["text_config"] = _named(text)
    return named


def _named(config: Config) -> Config:
    found = {"num_experts": config.get("num_local_experts"), **_full_layers(config)}
    kind = str(config.get("model_type"))
    if kind.startswith("cohere2"):
        found |= _pattern(config)
    if kind.startswith(("qwen3_5", "qwen3_next")):
        found["full_attention_interval"] = _pattern(config)["sliding_window_pattern"]
    return _with_rope(_filled(config, found))


def _full_layers(config: Config) -> Config:
    """What layers without a sliding window have of their own, as gemma4's."""
    layers, own = config.get("layer_types") or [], config.get("per_layer_config")
    if not isinstance(own, dict) or "full_attention" not in layers:
        return {}
    full = own.get(str(layers.index("full_attention"))) or {}
    return {
        "global_head_dim": full.get("head_dim"),
        "num_global_key_value_heads": full.get("num_key_value_heads"),
    }


def _with_rope(config: Config) -> Config:
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return dict(config)
    if not any(isinstance(rope.get(kind), dict) for kind in _LAYERS):
        return _filled(config, _older_rope(rope))
    full, sliding = (rope.get(kind) or {} for kind in _LAYERS)
    local = {"rope_local_base_freq": sliding.get("rope_theta")}
    return _filled(config, {**_older_rope(full), **local, **_pattern(config)})


def _older_rope(rope: Config) -> Config:
    """rope_theta, rope_scaling and partial_rotary_factor of one kind of layer."""
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    scaling.setdefault("type", scaling.get("rope_type", "default"))
    plain = scaling["type"] == "default" and "mrope_section" not in scaling
    return {
        "rope_theta": rope.get("rope_theta"),
        "rope_scaling": None if plain else scaling,
        "partial_rotary_factor": rope.get("partial_rotary_factor"),
    }


def _pattern(config: Config) -> Config:
    """How many layers there are for each one without a sliding window."""
    layers = config.get("layer_types") or []
    full = "full_attention" in layers
    return {"sliding_window_pattern": layers.index("full_attention") + 1 if full else None}


def _filled(config: Config, found: Config) -> Config:
    """With what was found where there is nothing yet."""
    missing = {n: v for n, v in found.items() if v is not None and config.get(n) is None}
    return {**config, **missing}
