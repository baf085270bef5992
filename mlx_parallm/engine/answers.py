"""Who waits for an answer: accepted sequences, and the outputs on their way to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mlx_parallm.engine.sequence import Output, Sequence

log = logging.getLogger(__name__)
Sink = Callable[[list[Output]], None]


@dataclass(slots=True)
class Waiting:
    """An accepted sequence that was not answered yet, and where its outputs go."""

    sequence: Sequence
    sink: Sink


class Answers:
    """Every accepted sequence gets outputs, the last one exactly once.

    `accept` may be called by any thread (under the engine's lock); everything else belongs to
    the engine's thread.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._outbox: dict[int, tuple[Sink, list[Output]]] = {}

    def __len__(self) -> int:
        """Sequences that are accepted and not yet answered."""
        return len(self._waiting)

    def __contains__(self, sequence_id: int) -> bool:
        return sequence_id in self._waiting

    def accept(self, sequences: Iterable[Sequence], sink: Sink) -> None:
        """From now on these sequences are answered through the sink."""
        for sequence in sequences:
            self._waiting[sequence.id] = Waiting(sequence, sink)

    def get(self, sequence_id: int) -> Sequence | None:
        """The sequence; None where it was answered or never accepted."""
        waiting = self._waiting.get(sequence_id)
        return None if waiting is None else waiting.sequence

    def sequences(self) -> list[Sequence]:
        """All that wait."""
        return [waiting.sequence for waiting in list(self._waiting.values())]

    def put(self, output: Output) -> bool:
        """Keep an output for `deliver`; whether it ended its sequence.

        Outputs of sequences that have ended are dropped.
        """
        waiting = self._waiting.get(output.sequence_id)
        if waiting is None:
            return False
        if output.finish_reason is not None:
            del self._waiting[output.sequence_id]
        self._outbox.setdefault(id(waiting.sink), (waiting.sink, []))[1].append(output)
        return output.finish_reason is not None

    def deliver(self) -> None:
        """Call each sink once, with all that was put for it."""
        outbox, self._outbox = self._outbox, {}
        for sink, outputs in outbox.values():
            try:
                sink(outputs)
            except Exception:
                # A client's fault must not stop the others' rows.
                log.exception("an output sink failed")
