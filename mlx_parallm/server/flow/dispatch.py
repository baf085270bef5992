"""Between the event loop and the engine's thread: sequences in, outputs back to their requests.

The engine calls one sink a step, with the outputs of all sequences. That is one wake-up of the
event loop a step, whatever the number of requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mlx_parallm.engine.sequence import Output
from mlx_parallm.engine.sequence import Sequence as EngineSequence
from mlx_parallm.errors import NotANumberError, ParallmError, SequenceError, UnavailableError
from mlx_parallm.server.flow.generation import Generation, Track

if TYPE_CHECKING:
    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.engine.engine import Engine

logger = logging.getLogger(__name__)


class Dispatcher:
    """Hands generations to the engine and its outputs to them.

    Everything but the sink runs on the event loop.

    Args:
        engine: where the sequences run.
        loop: where the generations live.
        on_end: called once with every generation that was accepted, when it has ended.
    """

    def __init__(
        self,
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[Generation], None] | None = None,
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._on_end = on_end
        self._owner: dict[int, Generation] = {}
        self.find_default: Callable[[], Adapter | None] = lambda: None
        # One object: the engine groups the outputs of a step by their sink's identity.
        self._sink = self._on_engine_thread

    @property
    def default_adapter(self) -> Adapter | None:
        """Of sequences that have none: its version that new requests get."""
        return self.find_default()

    @property
    def idle(self) -> bool:
        """Whether no sequence of ours is in the engine."""
        return not self._owner

    def submit(self, generations: Sequence[Generation]) -> None:
        """Hand all their sequences to the engine at once: all are accepted or none.

        Raises:
            ParallmError: the engine has no room or does not run.
        """
        sequences = [sequence for one in generations for sequence in one.sequences]
        default = self.default_adapter
        if default is not None:
            for sequence in sequences:
                if sequence.adapter is None and sequence.prediction is None:
                    sequence.use(default)
        self._hand_over({sequence: one for one in generations for sequence in one.sequences})
        for generation in generations:
            generation.spend(generation.prompt_tokens)

    def extend(self, generation: Generation, tracks: Sequence[Track]) -> None:
        """Hand more sequences of a running generation to the engine, as they are.

        Raises:
            ParallmError: the engine has no room or does not run.
        """
        generation.add(tracks)
        self._hand_over({track.sequence: generation for track in tracks})
        generation.spend(sum(len(track.prompt.ids) for track in tracks))

    def _hand_over(self, owners: Mapping[EngineSequence, Generation]) -> None:
        for sequence, owner in owners.items():
            if owner.client is not None:
                sequence.client = owner.client.share
            # First: an output may come back before submit() returns.
            self._owner[sequence.id] = owner
        try:
            self._engine.submit(list(owners), self._sink)
        except BaseException:
            for sequence in owners:
                self._owner.pop(sequence.id, None)
            raise

    def cancel(self, generation: Generation, error: ParallmError) -> None:
        """End a generation from our side; its rows are free within a step."""
        ids = [id_ for id_ in generation.open_ids if self._owner.pop(id_, None) is not None]
        self._end(generation, error, accepted=bool(ids))
        if ids:
            self._engine.abort(ids)

    def cancel_all(self, error: ParallmError) -> None:
        """End every generation that is in the engine."""
        for generation in {id(one): one for one in self._owner.values()}.values():
            self.cancel(generation, error)

    def _on_engine_thread(self, outputs: list[Output]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs)
        except RuntimeError:
            # The loop is closed: the server is gone, and so are those who waited.
            logger.debug("%d outputs came after the event loop had closed", len(outputs))

    def _deliver(self, outputs: list[Output]) -> None:
        to_abort: list[int] = []
        for output in outputs:
            generation = self._owner.get(output.sequence_id)
            if generation is None:
                continue
            try:
                ended = generation.feed(output)
            except Exception as error:  # noqa: BLE001 - must not reach the other requests
                self.cancel(generation, _for_client(error))
                continue
            generation.spend(len(output.token_ids))
            if ended:
                del self._owner[output.sequence_id]
                if output.finish_reason is None:
                    to_abort.append(output.sequence_id)
                if generation.ended and self._on_end is not None:
                    self._on_end(generation)
        if to_abort:
            self._engine.abort(to_abort)

    def _end(self, generation: Generation, error: ParallmError, accepted: bool) -> None:
        if generation.ended:
            return
        generation.fail(error)
        if accepted and self._on_end is not None:
            self._on_end(generation)


def _for_client(error: Exception) -> ParallmError:
    """A fault as something that may be shown; what is not ours to show is logged."""
    if isinstance(error, (UnavailableError, NotANumberError)):
        return error
    if isinstance(error, ParallmError) and error.status < 500:
        return error
    logger.error("a sequence failed", exc_info=error)
    return SequenceError("The server failed on this request.")
