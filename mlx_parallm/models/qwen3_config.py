"""Qwen3's config.json as a dataclass, for callers who build things from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.adapting.layer_spec import LayerSpec
from mlx_parallm.models.loader import resolve


@dataclass
class Qwen3Config:
    """The shape of a Qwen3 model; names and defaults of the MILI reference.

    Raises:
        InvalidRequestError: a size is below 1, or heads do not divide.
    """

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    vocab_size: int = 150000
    max_position_embeddings: int = 32768
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    # Qwen3's checkpoints name it; 0 is hidden_size // num_attention_heads.
    head_dim: int = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            if option.type == "int" and option.name != "head_dim" and value < 1:
                raise InvalidRequestError(f"{option.name} is below 1", param=option.name)
        if self.num_attention_heads % self.num_key_value_heads:
            raise InvalidRequestError(
                "num_attention_heads is no multiple of num_key_value_heads",
                param="num_key_value_heads",
            )
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise InvalidRequestError(
                "hidden_size is no multiple of num_attention_heads", param="hidden_size"
            )
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it, with the model_type."""
        return {"model_type": "qwen3", **asdict(self)}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Qwen3Config:
        """From a config.json; entries that have no field here are left out."""
        known = {option.name for option in fields(cls)}
        return cls(**{name: value for name, value in config.items() if name in known})

    @classmethod
    def from_pretrained(cls, model_name: str) -> Qwen3Config:
        """From a folder or a hub id.

        Raises:
            ModelLoadError: there is no such folder or model.
        """
        return cls.from_dict(json.loads(Path(resolve(model_name), "config.json").read_text()))

    def kv_layers(self) -> list[LayerSpec]:
        """What each layer keeps, for PagedKVCache and KVCacheAllocator."""
        spec = LayerSpec(self.num_key_value_heads, self.head_dim, self.head_dim)
        return [spec] * self.num_hidden_layers
