"""New versions of an adapter for rows that run. On the engine's thread, with nothing in flight."""

from __future__ import annotations

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler


def switch_rows(
    scheduler: ContinuousBatchScheduler, runner: ModelRunner, new: Adapter, *, recompute: bool
) -> int:
    """Let unfinished sequences of an adapter's earlier versions go on with a new one.

    Args:
        recompute: K and V of their tokens are computed again; else those of the version
            before stay, and are nobody else's prefix.

    Returns:
        how many sequences.
    """
    changed = [
        sequence
        for sequence in scheduler.unfinished
        if sequence.adapter is not None
        and sequence.adapter.name == new.name
        and sequence.adapter is not new
    ]
    kept = []
    for sequence in changed:
        runs = sequence in scheduler.running
        if runs and recompute:
            runner.release(sequence)  # what it computed is the old version's prefix
            scheduler.recompute(sequence)
        scheduler.disband(sequence)  # whoever waits for its prefix waits for another one
        sequence.switch(new, exact=recompute or not runs)
        if runs and not recompute:
            kept.append(sequence)
    if kept and runner.adapters is not None:
        runner.adapters.admit(kept[0], scheduler.running)
        for sequence in kept:
            if sequence.id in runner.forwards.rows:
                runner.forwards.rows[sequence.id].adapter = new.slot
    return len(changed)
