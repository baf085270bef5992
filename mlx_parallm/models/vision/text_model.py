"""The text model inside a checkpoint that sees, for families that mlx-lm does not know itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import _get_classes
from transformers import CONFIG_MAPPING

from mlx_parallm.models.checkpoint.config_names import with_older_names
from mlx_parallm.models.vision.families import family_of

Weights = dict[str, mx.array]

# Where checkpoints keep the text model: transformers' older and newer names, and mlx-vlm's.
_PREFIXES = re.compile(
    r"^(model\.text_model\.|model\.language_model\.|language_model\.model\.|text_model\."
    r"|language_model\.(?=layers\.|norm\.|embed_tokens\.))"
)
_HEADS = re.compile(r"^(language_model\.|model\.)?lm_head\.")


def completed(text_config: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """With what is left out since it is transformers' default, which mlx-lm's may not be.

    Args:
        text_config: of a model_type that transformers knows; any other stays as it is.
        config: the whole config.json, which may say whether the head is tied.
    """
    kind = str(text_config["model_type"])
    if kind not in CONFIG_MAPPING:
        return dict(text_config)
    full = with_older_names(CONFIG_MAPPING[kind].from_dict(dict(text_config)).to_dict())
    full["tie_word_embeddings"] = config.get("tie_word_embeddings", full.get("tie_word_embeddings"))
    if full.get("head_dim") is None:
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    missing = {n: v for n, v in full.items() if n not in text_config and v is not None}
    return {**missing, **text_config}


class ModelArgs:
    """The whole config.json; `text_config` is the text model's.

    Attributes:
        text_config: with a model_type that mlx-lm knows.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.model_type = str(config["model_type"])
        self.text_config = completed(config["text_config"], config)
        family = family_of(config)
        if family is not None and family.text:
            self.text_config["model_type"] = family.text

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelArgs:
        """As mlx-lm's loader calls it."""
        return cls(config)


class Model(nn.Module):
    """mlx-lm's model for `text_config`, as its wrappers of other families have it."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args = args
        self.model_type = args.model_type
        model_class: Any
        args_class: Any
        model_class, args_class = _get_classes(args.text_config)
        self.language_model = model_class(args_class.from_dict(args.text_config))

    def __call__(self, inputs: mx.array, cache: Any = None, **kwargs: Any) -> mx.array:
        logits: mx.array = self.language_model(inputs, cache=cache, **kwargs)
        return logits

    @property
    def layers(self) -> Any:
        """The text model's."""
        return self.language_model.layers

    @property
    def cast_predicate(self) -> Callable[[str], bool]:
        """Which weights may have another type.

        Raises:
            AttributeError: all of them.
        """
        may: Callable[[str], bool] = self.language_model.cast_predicate
        return may

    @property
    def make_cache(self) -> Callable[[], list[Any]]:
        """The text model's own caches, where it has some.

        Raises:
            AttributeError: it has none.
        """
        make: Callable[[], list[Any]] = self.language_model.make_cache
        return make

    def sanitize(self, weights: Weights) -> Weights:
        """The text model's weights by mlx-lm's names; all others are left out."""
        found: Weights = {}
        for name, array in weights.items():
            if _HEADS.match(name):
                found[f"lm_head.{_HEADS.sub('', name)}"] = array
            elif _PREFIXES.match(name):
                found[f"model.{_PREFIXES.sub('', name)}"] = array
        inner = getattr(self.language_model, "sanitize", None)
        found = found if inner is None else inner(found)
        return {f"language_model.{name}": array for name, array in found.items()}
