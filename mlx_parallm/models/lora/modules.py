"""The modules of a model by the names that adapters' files have for them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mlx_parallm.models.adapting.shard import shard_of
from mlx_parallm.models.lora.delta import HEAD
from mlx_parallm.models.lora.layers import EMBEDDINGS, EXPERTS, LINEARS

_OUTPUT = "lm_head"
_INPUTS = frozenset({"embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in"})
_EXPERT_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_EXPERT_HOMES = ("switch_mlp", "switch_glu", "experts", "mlp")


class Modules:
    """Finds modules by their paths, or by paths that end alike.

    Args:
        model: an mlx-lm model; only shapes are looked at, so any thread may.
    """

    def __init__(self, model: Any) -> None:
        self._by_path: dict[str, Any] = dict(model.named_modules())

    def __getitem__(self, path: str) -> Any:
        return self._by_path[path.removesuffix(HEAD)]

    @property
    def paths(self) -> list[str]:
        """Of all modules."""
        return list(self._by_path)

    def find(self, name: str) -> str | None:
        """The path of a module in the model; None where there is no such module.

        Hugging Face's names differ at their beginning only, and by the head of models that
        have none of their own.
        """
        if name in self._by_path:
            return name
        rest = name
        while rest:
            ends = [path for path in self._by_path if path.endswith(f".{rest}") or path == rest]
            if len(ends) == 1:
                return ends[0]
            rest = rest.partition(".")[2]
            if "." not in rest:
                break
        return self._tied_head if name.rpartition(".")[2] == _OUTPUT else None

    def find_experts(self, home: str, name: str) -> str | None:
        """The path of all experts' projections of one name below a mixture's path."""
        name = _EXPERT_NAMES.get(name, name)
        for place in _EXPERT_HOMES:
            path = self.find(f"{home}.{place}.{name}")
            if path is not None and isinstance(self[path], EXPERTS):
                return path
        return None

    @cached_property
    def _tied_head(self) -> str | None:
        found = [
            path
            for path, module in self._by_path.items()
            if isinstance(module, EMBEDDINGS) and path.rpartition(".")[2] in _INPUTS
        ]
        heads = [path for path in self._by_path if path.rpartition(".")[2] == _OUTPUT]
        return found[0] + HEAD if len(found) == 1 and not heads else None

    @property
    def has_tied_head(self) -> bool:
        """Whether the input embedding is the output layer too."""
        return self._tied_head is not None

    def is_embedding(self, path: str) -> bool:
        """Whether the module looks tokens up."""
        return isinstance(self[path], EMBEDDINGS)

    def is_linear(self, path: str) -> bool:
        """Whether the module is a product, the tied head included."""
        return isinstance(self[path], LINEARS) or path.endswith(HEAD)

    def is_experts(self, path: str) -> bool:
        """Whether the module is a product for each expert."""
        return isinstance(self[path], EXPERTS)


def width_of(module: Any) -> tuple[int, ...]:
    """(out, in) of a linear layer, (vocabulary, dim) of an embedding, (E, out, in) of experts.

    Of the whole layer, where this process has a part of it.
    """
    shape = list(module.weight.shape)
    if hasattr(module, "bits"):
        shape[-1] = module.scales.shape[-1] * module.group_size
    shard = shard_of(module)
    if shard is not None:
        shape[-2 if shard.axis == "out" else -1] *= shard.size
    return tuple(shape)
