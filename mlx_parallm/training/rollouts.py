"""Rollouts: groups of answers from the engine that also serves, with what training needs."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams, Sequence
from mlx_parallm.errors import TrainingError
from mlx_parallm.training.dataset import Example
from mlx_parallm.training.settings import TrainSettings

PRIORITY = 1
"""Requests of people, which have 0, come first."""


@dataclass
class Sample:
    """One answer.

    Attributes:
        tokens: those that were sampled, the end token included.
        logprobs: of each, under the distribution that it was drawn from.
        version: of the adapter that all of them were drawn with.
        truncated: whether it ended because it was too long.
        reward, advantage: filled in later.
    """

    example: Example
    version: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    truncated: bool = False
    reward: float = 0.0
    advantage: float = 0.0


class Rollouts:
    """Asks the engine for groups of answers.

    Args:
        on_tokens: told how many tokens came.
    """

    def __init__(
        self, engine: Engine, settings: TrainSettings, on_tokens: Callable[[int], None]
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._on_tokens = on_tokens

    def sample(self, step: int, examples: list[Example], adapter: Adapter) -> list[list[Sample]]:
        """A group of answers to each prompt; the same for the same step, seed and weights.

        Raises:
            ParallmError: the engine failed on one of them, or has stopped.
        """
        groups = [[Sample(e, adapter.version) for _ in range(self._group)] for e in examples]
        samples = [sample for group in groups for sample in group]
        sequences = self._sequences(step, samples, adapter)
        inbox: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        self._engine.submit(sequences, inbox.put)
        open_ones = {
            sequence.id: (sample, self._stream(sequence))
            for sequence, sample in zip(sequences, samples, strict=True)
        }
        try:
            while open_ones:
                for output in inbox.get():
                    if output.sequence_id in open_ones:
                        self._take(output, open_ones)
        finally:
            self._engine.abort(open_ones)
        return groups

    @property
    def _group(self) -> int:
        return self._settings.group_size

    def _sequences(self, step: int, samples: list[Sample], adapter: Adapter) -> list[Sequence]:
        seeds = np.random.SeedSequence([self._settings.seed, step])
        drawn = seeds.generate_state(len(samples), np.uint64).tolist()
        sequences: list[Sequence] = []
        for place, (sample, seed) in enumerate(zip(samples, drawn, strict=True)):
            sequence = Sequence(
                sample.example.ids, self._params(seed), priority=PRIORITY, adapter=adapter
            )
            # The first of a group gives it a number that no other request has.
            leader = sequences[place - place % self._group] if place % self._group else sequence
            sequence.group = leader.id
            sequences.append(sequence)
        return sequences

    def _params(self, seed: int) -> SamplingParams:
        assert self._engine.loaded is not None
        return SamplingParams(
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            seed=seed,
            eos_token_ids=self._engine.loaded.eos_token_ids,
            logprobs=0,
            logprobs_mode="processed_logprobs",
        )

    def _stream(self, sequence: Sequence) -> TextStream:
        assert self._engine.loaded is not None
        return TextStream(
            self._engine.loaded.tokenizer,
            sequence.params,
            stop=self._settings.stop,
            prompt=sequence.prompt,
        )

    def _take(self, output: Output, open_ones: dict[int, tuple[Sample, TextStream]]) -> None:
        if output.error is not None:
            raise output.error
        if output.finish_reason is FinishReason.ABORT:
            raise TrainingError("Somebody has aborted the requests of this training.")
        sample, stream = open_ones[output.sequence_id]
        delta = stream.push(output)
        sample.tokens += delta.token_ids
        sample.logprobs += [entry.logprob for entry in delta.logprobs or ()]
        sample.text += delta.text
        self._on_tokens(len(delta.token_ids))
        if delta.finish_reason is None:
            return
        del open_ones[output.sequence_id]
        sample.truncated = delta.finish_reason is FinishReason.LENGTH
        if output.finish_reason is None:  # a stop string: the engine does not know
            self._engine.abort([output.sequence_id])
