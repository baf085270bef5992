"""Whether there is room for more sequences: in the queue, and in the memory for K and V."""

from __future__ import annotations

from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.errors import OutOfMemoryError, QueueFullError, UnsupportedError
from mlx_parallm.models.loader import LoadedModel


def check_room(
    sequences: list[Sequence],
    live: int,
    config: EngineConfig,
    scheduler: ContinuousBatchScheduler,
    loaded: LoadedModel | None,
) -> None:
    """Refuse sequences that cannot be accepted now, or ever.

    Args:
        live: sequences that run or wait already.

    Raises:
        QueueFullError: too many wait.
        UnsupportedError: an encoder was asked to generate.
        OutOfMemoryError: one is larger than the whole KV memory.
    """
    if live + len(sequences) > config.max_queue + config.max_batch_size:
        raise QueueFullError(
            f"{live} sequences are running or waiting; "
            f"there is no room for {len(sequences)} more now"
        )
    for sequence in sequences:
        if sequence.prediction is not None:
            continue  # it needs no row
        if sequence.pooling is None and loaded is not None and loaded.is_encoder:
            raise UnsupportedError(loaded.encoder_endpoints, param="model")
        if not scheduler.fits(sequence):
            raise OutOfMemoryError(
                f"{len(sequence.prompt)} prompt tokens and {sequence.params.max_tokens} "
                f"new ones are over the KV memory of {scheduler.config.kv_tokens} tokens"
            )
