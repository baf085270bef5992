"""What a config.json says of a model, in the words of many architectures."""

from __future__ import annotations

from typing import Any

_DEFAULT_CONTEXT = 4096


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def context_of(config: dict[str, Any], asked: int | None) -> int:
    """Tokens of prompt and output together: its own, or fewer where fewer are asked for."""
    text = _text_config(config)
    names = (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "n_ctx",
        "block_size",
        "model_max_length",
    )
    own = next((int(text[n]) for n in names if text.get(n)), _DEFAULT_CONTEXT)
    return min(own, asked) if asked else own


def vocab_size_of(config: dict[str, Any], tokenizer: Any) -> int:
    """Columns of the logits."""
    text = _text_config(config)
    for name in ("vocab_size", "padded_vocab_size", "n_vocab", "num_vocab"):
        if text.get(name):
            return int(text[name])
    return len(tokenizer.get_vocab())
