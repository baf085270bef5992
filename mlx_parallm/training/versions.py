"""Versions: each update of the policy becomes the adapter that new answers are sampled with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine
from mlx_parallm.models.lora.reader import read_bytes

POLICY = "policy"
"""The name of the adapter that is trained."""


class Versions(Protocol):
    """Puts new weights in between two steps of the engine. Not on the engine's thread."""

    def publish(self, config: Mapping[str, Any], weights: bytes) -> Adapter:
        """Make the weights the next version.

        Args:
            config: mlx-lm's adapter_config.json. weights: a safetensors file.
        """
        ...


class OwnVersions:
    """Those of an engine that serves nobody else."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._version = 0

    def publish(self, config: Mapping[str, Any], weights: bytes) -> Adapter:
        """See Versions."""
        engine = self._engine
        read = read_bytes(config, weights, engine.adapter_modules(), engine.config.max_lora_rank)
        self._version += 1
        adapter = Adapter(POLICY, self._version, read)
        for step in engine.prepare_adapter(adapter):
            engine.call(step).result()
        return adapter
