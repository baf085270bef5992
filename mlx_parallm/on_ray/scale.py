"""How many replicas there are, and what each one takes of its machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scale:
    """Of all replicas.

    Attributes:
        cpus, gpus: that Ray sets aside for a replica.
        adapters: name -> folder, which a replica reads when it is first asked for it.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    adapters: Mapping[str, str] = field(default_factory=dict)
