"""The sides of an engine benchmark: ours, mlx-lm's BatchGenerator, a plain MLX loop.

Each side runs the same work and reports when every token came.
"""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams
from mlx_parallm.engine.sequence import Sequence as Row
from mlx_parallm.models.loader import LoadedModel, load_model


@dataclass(frozen=True)
class Work:
    """One sequence to generate.

    Attributes:
        prompt: token ids.
        tokens: how many to generate; end tokens are ignored.
        sampling: fields of SamplingParams.
    """

    prompt: list[int]
    tokens: int
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Timing:
    """When tokens came, in seconds since the start.

    Attributes:
        times: one list per piece of work, in its order.
        finished: how many ended with all of their tokens.
    """

    times: list[list[float]]
    finished: int = 0

    @property
    def tokens_per_second(self) -> float:
        """All generated tokens over the time to the last one, prompts included."""
        return sum(map(len, self.times)) / max(t[-1] for t in self.times if t)

    def gaps(self, first: int = 0, last: int | None = None) -> list[float]:
        """Seconds between neighbouring tokens of work first..last."""
        chosen = self.times[first:last]
        return [b - a for times in chosen for a, b in itertools.pairwise(times)]

    def steps(self) -> list[float]:
        """Seconds per step while every piece of work is decoding."""
        start = max(times[0] for times in self.times)
        end = min(times[-1] for times in self.times)
        moments = [t for t in self.times[0] if start <= t <= end]
        return [b - a for a, b in itertools.pairwise(moments)]


class OurEngine:
    """This project's engine, in a thread of its own."""

    name = "mlx_parallm"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(
        self,
        work: Sequence[Work],
        clients: int | None = None,
        on_step: Callable[[Timing], None] | None = None,
        late: Sequence[tuple[int, Work]] = (),
    ) -> Timing:
        """Generate everything.

        Args:
            clients: so many at once, the next one when one ends; default all at once.
            on_step: called on the engine's thread after each step.
            late: (n, work): submitted when work 0 has n tokens; timed behind the others.
        """
        return _OurRun(self.engine, work, on_step, late).run(clients or len(work))


class _OurRun:
    """One run: a sink that keeps times and submits what is due."""

    def __init__(
        self,
        engine: Engine,
        work: Sequence[Work],
        on_step: Callable[[Timing], None] | None,
        late: Sequence[tuple[int, Work]],
    ) -> None:
        self.engine = engine
        everything = [*work, *(piece for _, piece in late)]
        self.rows = [to_row(piece) for piece in everything]
        self.place = {row.id: index for index, row in enumerate(self.rows)}
        self.timing = Timing([[] for _ in everything])
        self.on_step = on_step
        self.waiting = iter(self.rows[: len(work)])
        self.late = [(due, row) for (due, _), row in zip(late, self.rows[len(work) :], strict=True)]
        self.left = len(everything)
        self.done = threading.Event()
        self.failure: Exception | None = None
        self.started = 0.0

    def run(self, clients: int) -> Timing:
        self.started = time.perf_counter()
        self.engine.submit(list(itertools.islice(self.waiting, clients)), self._sink)
        self.done.wait()
        if self.failure is not None:
            raise self.failure
        return self.timing

    def _sink(self, outputs: list[Output]) -> None:
        now = time.perf_counter() - self.started
        try:
            ended = sum(self._take(output, now) for output in outputs)
            due = list(itertools.islice(self.waiting, ended)) + self._due()
            if due:
                self.engine.submit(due, self._sink)
            if self.on_step is not None:
                self.on_step(self.timing)
            self.left -= ended
        except Exception as error:  # noqa: BLE001  raised again by run(), where it is seen
            self.failure = error
        if self.left == 0 or self.failure is not None:
            self.done.set()

    def _take(self, output: Output, now: float) -> bool:
        index = self.place[output.sequence_id]
        self.timing.times[index] += [now] * len(output.token_ids)
        if output.error is not None:
            raise output.error
        if output.finish_reason is None:
            return False
        self.timing.finished += len(self.timing.times[index]) == self.rows[index].params.max_tokens
        return True

    def _due(self) -> list[Row]:
        have = len(self.timing.times[0])
        due = [row for when, row in self.late if when <= have]
        self.late = [(when, row) for when, row in self.late if when > have]
        return due


def to_row(work: Work) -> Row:
    """The engine's form of a piece of work."""
    settings: dict[str, Any] = {"temperature": 0, **work.sampling}
    return Row(
        list(work.prompt), SamplingParams(max_tokens=work.tokens, ignore_eos=True, **settings)
    )


@contextlib.contextmanager
def our_engine(folder: Path, **config: Any) -> Iterator[OurEngine]:
    """A started engine on the model in a folder; `config` are fields of EngineConfig."""
    engine = Engine(lambda: load_model(str(folder)), EngineConfig(**config))
    engine.start()
    try:
        engine.wait_ready(120)
        yield OurEngine(engine)
    finally:
        engine.stop()


class LmBatchGenerator:
    """mlx-lm's BatchGenerator as mlx_lm.server uses it: a sampler per request."""

    name = "BatchGenerator"

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model

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

    name = "plain loop"

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = loaded.model

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
