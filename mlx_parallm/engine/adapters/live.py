"""New versions for rows that run: of an adapter, or of the whole model.

On the engine's thread, with nothing in flight, so that the version of each token is exact.
"""

from __future__ import annotations

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.weights import Running, Weights


def switch_rows(
    scheduler: ContinuousBatchScheduler, runner: ModelRunner, new: Adapter, *, recompute: bool
) -> int:
    """Let unfinished sequences of an adapter's earlier versions go on with a new one.

    Those with memories finish on the version that their memories were made with.

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
        and sequence.adapter is not new.on(sequence.adapter.base)
        and sequence.memory is None
    ]
    kept = []
    for sequence in changed:
        assert sequence.adapter is not None
        runs = _prepare_to_switch(scheduler, runner, sequence, recompute=recompute)
        adapter = new.on(sequence.adapter.base)
        sequence.switch(adapter=adapter, exact=recompute or not runs)
        if runs and not recompute:
            kept.append(sequence)
    _use_slots(scheduler, runner, kept)
    return len(changed)


def switch_weights(
    scheduler: ContinuousBatchScheduler, runner: ModelRunner, new: Weights, running: Running
) -> int:
    """Make other weights the model's own.

    Sequences that have written nothing yet begin with the new ones. Those with memories finish
    on the weights that their memories were made with.

    Returns:
        how many sequences that had begun go on with the new weights.
    """
    before = runner.weights.current
    runner.weights.put(new)
    scheduler.turns.current = new
    changed = []
    if running != "finish":
        changed = [s for s in scheduler.unfinished if _may_switch(s, new)]
        _switch_begun(scheduler, runner, changed, before, recompute=running == "recompute")
    runner.forwards_by_version.forget_empty(new)
    if runner.adapters is not None:
        bases = {s.weights.version for s in scheduler.unfinished if s.weights is not None}
        runner.adapters.forget_bases({new.version, *bases}, scheduler.running)
    return len(changed)


def _may_switch(sequence: Sequence, new: Weights) -> bool:
    begun = sequence.weights is not None
    return begun and sequence.weights is not new and sequence.memory is None


def _switch_begun(
    scheduler: ContinuousBatchScheduler,
    runner: ModelRunner,
    changed: list[Sequence],
    before: Weights,
    *,
    recompute: bool,
) -> None:
    new = runner.weights.current
    kept = []
    for sequence in changed:
        runs = _prepare_to_switch(scheduler, runner, sequence, recompute=recompute)
        if runs and not recompute:
            kept.append(sequence)
        else:
            sequence.switch(weights=new, exact=True)
    runner.forwards_by_version.move(kept, new)
    for sequence in kept:
        sequence.switch(weights=new, exact=False)
    _use_slots(scheduler, runner, kept)


def _prepare_to_switch(
    scheduler: ContinuousBatchScheduler,
    runner: ModelRunner,
    sequence: Sequence,
    *,
    recompute: bool,
) -> bool:
    """Give its row back where it is to be recomputed; returns whether it ran."""
    runs = sequence in scheduler.running
    if runs and recompute:
        runner.release(sequence)  # what it computed is the old version's prefix
        scheduler.recompute(sequence)
    scheduler.disband(sequence)  # whoever waits for its prefix waits for another one
    return runs


def _use_slots(
    scheduler: ContinuousBatchScheduler, runner: ModelRunner, kept: list[Sequence]
) -> None:
    """Let rows compute with the adapters that their sequences have now."""
    for sequence in kept:
        row = runner.row_of(sequence)
        if sequence.adapter is None or runner.adapters is None:
            continue
        runner.adapters.admit(sequence, scheduler.running)
        if row is not None:
            row.adapter = sequence.adapter.slot
