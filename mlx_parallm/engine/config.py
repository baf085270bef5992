"""EngineConfig: the bounds and choices of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_parallm.engine.pacing.token_budget import MAX_GAP


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs.

    Attributes:
        max_batch_size: sequences that compute at once.
        max_queue: sequences that may wait; one more is refused.
        prefill_chunk: prompt tokens a step may add at most while others decode; None
            chooses by device. How many a step takes, up to this, is measured.
        max_gap: how long a step with prompt tokens may be, in steps without; running rows
            wait that long for their next token.
        kv_cache_memory: bytes for K and V of running sequences; None is half of
            the memory that the weights leave free.
        memory_utilization: instead of kv_cache_memory, the share of the device's memory
            that weights, K and V may take, above 0 up to 1.
        memory_limit: bytes that the whole process may use; None is all that the device has.
        prefix_cache_memory: bytes for finished prefixes; 0 turns them off, None is
            a quarter of kv_cache_memory.
        prefix_cache_dir: a folder that keeps prefixes over a restart, at most
            prefix_cache_disk bytes of them.
        speculative: "ngram" guesses tokens from the text so far, "draft" with a
            draft model; None decodes one token a step.
        num_draft_tokens: the most tokens to guess.
        step_timeout: seconds after which a step counts as stalled; 0 is never.
        max_loras: adapters on the device at once.
        max_lora_rank: a larger one is refused.
    """

    max_batch_size: int = 32
    max_queue: int = 1024
    prefill_chunk: int | None = None
    max_gap: float = MAX_GAP
    kv_cache_memory: int | None = None
    memory_utilization: float | None = None
    memory_limit: int | None = None
    prefix_cache_memory: int | None = None
    prefix_cache_dir: Path | None = None
    prefix_cache_disk: int = 4 << 30
    speculative: str | None = None
    num_draft_tokens: int = 12
    step_timeout: float = 300.0
    max_loras: int = 8
    max_lora_rank: int = 64
