"""mlx-lm's own ways to run a model, in a process of their own.

Our engine replaces operations in the modules of mlx-lm's models. In its process they
would be measured with those; here they are as installed, with the same BLAS.
"""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from benchlib.work import Timing, Work


class StockError(RuntimeError):
    """The process ended or its side failed; the message says how."""


class Stock:
    """The process; started at once, ended by close().

    Args:
        folder: the model.
    """

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(folder, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, side: str, work: Sequence[Work], late: Sequence[tuple[int, Work]]) -> Timing:
        """Run work on the side of that name.

        Raises:
            StockError: it did not come to an end.
        """
        try:
            self._pipe.send((side, work, late))
            answer = self._pipe.recv()
        except (OSError, EOFError) as error:
            raise StockError(f"the process of mlx-lm ended: {error!r}") from error
        if not isinstance(answer, Timing):
            raise StockError(f"{side}: {answer}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        self._process.kill()


class StockSide:
    """A side that runs in the process; name is BatchGenerator or plain loop."""

    def __init__(self, stock: Stock, name: str) -> None:
        self._stock = stock
        self.name = name

    def run(self, work: Sequence[Work], late: Sequence[tuple[int, Work]] = ()) -> Timing:
        """Generate everything.

        Args:
            late: (n, work): added when work 0 has n tokens; timed behind the others.
        """
        return self._stock.run(self.name, work, late)


def _serve(folder: Path, pipe: Connection) -> None:
    """The process: load the model, then run what comes until the pipe is closed."""
    model, *_ = load(str(folder))
    batch, loop = LmBatchGenerator(model), PlainLoop(model)
    while True:
        try:
            side, work, late = pipe.recv()
        except EOFError:
            return
        try:
            mx.reset_peak_memory()
            timing = batch.run(work, late) if side == BATCH_GENERATOR else loop.run(work)
            timing.peak_bytes = mx.get_peak_memory()
            pipe.send(timing)
        except Exception as error:  # noqa: BLE001  raised again where it was asked for
            pipe.send(repr(error))


BATCH_GENERATOR, PLAIN_LOOP = "BatchGenerator", "plain loop"


class LmBatchGenerator:
    """mlx-lm's BatchGenerator as mlx_lm.server uses it: a sampler per request."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, work: Sequence[Work], late: Sequence[tuple[int, Work]] = ()) -> Timing:
        """Generate everything; arguments and result as OurEngine.run."""
        timing = Timing([[] for _ in range(len(work) + len(late))])
        generator = BatchGenerator(self.model, completion_batch_size=max(32, len(work)))
        started = time.perf_counter()
        places = self._insert(generator, work)
        waiting = list(late)
        while timing.finished < len(timing.times):
            _, responses = generator.next()
            now = time.perf_counter() - started
            for response in responses:
                timing.times[places[response.uid]].append(now)
                timing.finished += response.finish_reason is not None
            due = [piece for when, piece in waiting if when <= len(timing.times[0])]
            if due:
                first = len(work) + len(late) - len(waiting)
                waiting = waiting[len(due) :]
                places |= self._insert(generator, due, first)
        generator.close()
        return timing

    def _insert(
        self, generator: BatchGenerator, work: Sequence[Work], first: int = 0
    ) -> dict[int, int]:
        uids = generator.insert(
            [list(piece.prompt) for piece in work],
            [piece.tokens for piece in work],
            samplers=[_lm_sampler(piece.sampling) for piece in work],
            logits_processors=[_lm_processors(piece.sampling) for piece in work],
        )
        return {uid: first + index for index, uid in enumerate(uids)}


def _lm_sampler(sampling: Mapping[str, float]) -> Callable[[mx.array], mx.array]:
    sampler: Callable[[mx.array], mx.array] = make_sampler(
        sampling.get("temperature", 0),
        top_p=sampling.get("top_p", 0),
        min_p=sampling.get("min_p", 0),
        top_k=int(sampling.get("top_k", 0)),
    )
    return sampler


def _lm_processors(sampling: Mapping[str, float]) -> list[Any]:
    return list(make_logits_processors(repetition_penalty=sampling.get("repetition_penalty")))


class PlainLoop:
    """A loop over mlx-lm's model with its own cache: equal prompts' lengths, argmax only."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, work: Sequence[Work]) -> Timing:
        """Generate everything as one batch."""
        timing = Timing([[] for _ in work])
        cache = make_prompt_cache(self.model)
        started = time.perf_counter()
        tokens = self._next(mx.array([piece.prompt for piece in work]), cache)
        for _ in range(work[0].tokens):
            following = self._next(tokens[:, None], cache)
            mx.async_eval(following)
            tokens.tolist()
            now = time.perf_counter() - started
            for times in timing.times:
                times.append(now)
            tokens = following
        timing.finished = len(work)
        return timing

    def _next(self, inputs: mx.array, cache: Any) -> mx.array:
        return mx.argmax(self.model(inputs, cache=cache)[:, -1], axis=-1)
