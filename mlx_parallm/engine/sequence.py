"""A Sequence: one row of work, from its prompt tokens to its finish reason.

The engine knows tokens only; text is made outside (see detokenizer.py). A
request with n > 1 or several prompts is several sequences.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from mlx_parallm.engine.ledger import Ledger

if TYPE_CHECKING:
    import numpy as np

    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.engine.client import Client
    from mlx_parallm.engine.grammar.constraint import Constraint
    from mlx_parallm.engine.networks.prediction import Prediction
    from mlx_parallm.engine.weights import Weights
    from mlx_parallm.memory.citations import TokenCitation
    from mlx_parallm.memory.request import MemoryRequest
    from mlx_parallm.models.vision.media import Media

LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]
LOGPROBS_MODES: tuple[LogprobsMode, ...] = get_args(LogprobsMode)

_EMPTY: Mapping[int, float] = MappingProxyType({})
_counter = itertools.count(1)


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    PREFILL = "prefill"
    RUNNING = "running"
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a sequence ended. The values are OpenAI's where OpenAI has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence is sampled; the names and meanings are vLLM's.

    Attributes:
        max_tokens: how many tokens to generate at most; 0 only scores the prompt.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1]; 1 is off.
        top_k: keep the k most likely tokens; 0 is off.
        min_p: keep tokens of at least min_p times the best one's probability.
        repetition_penalty: > 1 discourages tokens of prompt and output (CTRL,
            arXiv 1909.05858): positive logits are divided by it, negative multiplied.
        presence_penalty: subtracted once from tokens that were generated.
        frequency_penalty: subtracted per generated occurrence.
        logit_bias: token id -> added to its logit, after the penalties.
        seed: 64-bit; the tokens depend on (seed, position) and nothing else.
            None draws a fresh one at submission.
        stop_token_ids: end the sequence; the token is part of token_ids.
        eos_token_ids: the model's own end tokens, off with ignore_eos.
        ignore_eos: generate on through the model's end tokens.
        min_tokens: end tokens cannot be sampled before this many tokens.
        allowed_token_ids: only these can be sampled; empty is off.
        logprobs: alternatives per generated token; None is off.
        logprob_token_ids: the alternatives are these, whatever their chances, instead of
            the likeliest; empty is off.
        logprobs_mode: of which distribution, see token_logprobs.py. The prompt's are
            always raw.
        processed_logprobs: the sampled token's log-probability of the distribution that it
            was drawn from comes beside those of logprobs_mode; needs logprobs.
        prompt_logprobs: alternatives for the prompt's tokens; None is off.
        speculative: False never guesses ahead for this sequence; None is the
            engine's choice.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _EMPTY)
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    allowed_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    logprobs_mode: LogprobsMode = "raw_logprobs"
    processed_logprobs: bool = False
    prompt_logprobs: int | None = None
    speculative: bool | None = None

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Every token that ends the sequence."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids | self.eos_token_ids

    @property
    def scores_logits(self) -> bool:
        """Whether logits are reported in place of log-probabilities."""
        return self.logprobs_mode in ("raw_logits", "processed_logits")

    @property
    def is_greedy(self) -> bool:
        """Whether the token is the argmax of the (penalised) logits."""
        return self.temperature == 0

    @property
    def has_cuts(self) -> bool:
        """Whether unlikely tokens cannot be drawn."""
        return self.top_k != 0 or self.top_p != 1 or self.min_p != 0

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one token, in nats; of which distribution, its request says.

    Attributes:
        top: the most likely tokens, best first, as (token id, logprob), or those that the
            request named, in its order.
        processed: of the distribution that the token was drawn from, where asked for beside
            `logprob`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    processed: float | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """Which versions compute a sequence from a token of its output on.

    Attributes:
        adapter: the version of its adapter, None where it has none.
        weights: the version of the model's weights.
    """

    first: int
    adapter: int | None = None
    weights: int = 0


@dataclass(slots=True)
class Output:
    """What one step gave one sequence. The last one has finish_reason or error.

    Attributes:
        token_ids: the new tokens, in order; empty for a pure finish.
        logprobs: one entry per new token where logprobs were asked for.
        prompt_logprobs: for the whole prompt, with the first output only; entry
            0 is None, since nothing precedes the first token.
        error: set when the sequence failed; finish_reason is then ERROR.
        citations: one entry per new token where citations were asked for.
        pooled: (D,) float32, the pooled hidden states of a pooling sequence.
        predicted: (rows, outputs) float32 of a prediction.
    """

    sequence_id: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    cached_tokens: int = 0
    citations: list[TokenCitation] | None = None
    pooled: np.ndarray | None = None
    predicted: np.ndarray | None = None


@dataclass(eq=False, slots=True)
class Sequence:
    """One row of work. Made by the caller, owned by the engine once submitted.

    num_computed counts the tokens whose K and V are in a row's cache; a step
    computes tokens until it has caught up with num_tokens. Chunked prefill,
    prefix hits, preemption and speculation are all that one rule.

    Attributes:
        prompt: token ids, at least one.
        params: how to sample.
        group: sequences with the same group share a prompt (n > 1): the first
            computes it, the others fork its row. None for a loner.
        priority: lower is served first (vLLM's meaning); ties by arrival.
        in_flight: tokens that a launched step is sampling for it.
        begun: when the scheduler took it in for the first time; None while it waits.
        prompt_scores: log-probabilities of the prompt so far, entry 0 None.
        namespace: everything besides tokens that changes K and V (adapter and
            version, memories and settings), and whose they are (cache_salt, API key);
            part of the prefix-cache key.
        memory: memories that it attends to, None for none; their part of the
            namespace is added when the sequence is made.
        adapter: that its tokens are computed with, None for the base model; its part of the
            namespace is added as well.
        weights: the version of the model that computes it; None until it is known.
        micro_batch: which part of the batch its row is in; see turns.py.
        switches: from which token of the output on which versions computed.
        pooling: "last", "mean" or "cls" (the first token) pools the last hidden states
            of all prompt tokens but the last, which only marks the end (`pooled` makes
            such a sequence).
        prediction: numbers for a plain network, which has no row in the batch; `prompt` then
            only counts its time steps (`predicting` makes such a sequence).
        constraint: the grammar that its output keeps to; no other sequence's.
        media: the pictures of its prompt; None where it has none. No other sequence's.
        client: who shares the batch with others; None where nobody is told apart.
        ledger: what it was given so far.
    """

    prompt: list[int]
    params: SamplingParams
    group: int | None = None
    priority: int = 0
    namespace: tuple[object, ...] = ()
    id: int = field(default_factory=lambda: next(_counter))
    arrival: float = field(default_factory=time.perf_counter)
    status: Status = Status.WAITING
    output: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    finish_reason: FinishReason | None = None
    in_flight: int = 0
    begun: float | None = None
    prompt_scores: list[TokenLogprob | None] = field(default_factory=list)
    memory: MemoryRequest | None = None
    adapter: Adapter | None = None
    weights: Weights | None = None
    micro_batch: int = 0
    switches: list[Switch] = field(default_factory=lambda: [Switch(0)])
    pooling: str | None = None
    prediction: Prediction | None = None
    constraint: Constraint | None = None
    media: Media | None = None
    client: Client | None = None
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if self.adapter is not None:
            self.use(self.adapter)
        if self.memory is not None and self.memory.namespace not in self.namespace:
            self.namespace = (*self.namespace, self.memory.namespace)

    def use(self, adapter: Adapter) -> None:
        """Compute with an adapter; before the sequence is submitted."""
        self.adapter = adapter
        if adapter.namespace not in self.namespace:
            self.namespace = (*self.namespace, adapter.namespace)
        self._note_versions()

    def begin_with(self, weights: Weights) -> None:
        """Compute with a version of the model; before any token is computed, or all anew."""
        self._replace_in_namespace(self.weights, weights)
        self.weights = weights
        if self.adapter is not None:
            self.adapter = self.adapter.on(weights.version)
        self._note_versions()

    def switch(
        self, *, adapter: Adapter | None = None, weights: Weights | None = None, exact: bool
    ) -> None:
        """Go on with another version of its adapter, or of the model.

        Args:
            exact: all of its K and V will be the new version's; else they are nobody's prefix.
        """
        if adapter is not None:
            self._replace_in_namespace(self.adapter, adapter)
            self.adapter = adapter
        if weights is not None:
            self.begin_with(weights)
        if not exact:
            self.namespace = (*self.namespace, ("mixed", self.id))
        self._note_versions()

    def _replace_in_namespace(self, old: Adapter | Weights | None, new: Adapter | Weights) -> None:
        before = () if old is None else old.namespace
        parts = [new.namespace if part == before else part for part in self.namespace]
        if not before:
            parts.append(new.namespace)
        self.namespace = tuple(part for part in parts if part != ())

    def _note_versions(self) -> None:
        switch = Switch(
            len(self.output),
            None if self.adapter is None else self.adapter.version,
            0 if self.weights is None else self.weights.version,
        )
        if self.switches[-1].first == switch.first:
            self.switches.pop()
        self.switches.append(switch)

    @property
    def versions(self) -> list[int]:
        """The version that gave each token: of its adapter, or of the model where it has none."""
        return [s.weights if s.adapter is None else s.adapter for s in self._switch_of_each]

    @property
    def base_versions(self) -> list[int]:
        """The version of the model's weights at each token."""
        return [switch.weights for switch in self._switch_of_each]

    @property
    def _switch_of_each(self) -> list[Switch]:
        ends = [*(switch.first for switch in self.switches[1:]), len(self.output)]
        return [
            switch
            for switch, end in zip(self.switches, ends, strict=True)
            for _ in range(switch.first, end)
        ]

    @classmethod
    def pooled(
        cls,
        tokens: list[int],
        pooling: str,
        priority: int = 0,
        namespace: tuple[object, ...] = (),
        adapter: Adapter | None = None,
    ) -> Sequence:
        """A sequence that is pooled and samples nothing.

        Args:
            tokens: all of them are pooled.
            pooling: "last", "mean" or "cls".
        """
        params = SamplingParams(max_tokens=0)
        return cls(
            [*tokens, tokens[-1]],
            params,
            priority=priority,
            namespace=namespace,
            adapter=adapter,
            pooling=pooling,
        )

    @classmethod
    def predicting(cls, prediction: Prediction, priority: int = 0) -> Sequence:
        """A sequence that a plain network computes, and that samples nothing."""
        steps = [0] * (prediction.num_steps + 1)
        params = SamplingParams(max_tokens=0)
        return cls(steps, params, priority=priority, prediction=prediction)

    @property
    def newest(self) -> int:
        """The newest token that the host knows."""
        return self.output[-1] if self.output else self.prompt[-1]

    @property
    def num_sampled(self) -> int:
        """Tokens sampled so far, those the host has not read yet included."""
        return len(self.output) + self.in_flight

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not yet computed."""
        return self.num_tokens - self.num_computed

    @property
    def tokens(self) -> list[int]:
        """Prompt and output, a new list."""
        return self.prompt + self.output

    @property
    def keys(self) -> list[int]:
        """Prompt and output as prefixes are found by: each picture has numbers of its own."""
        return (self.prompt if self.media is None else self.media.keys) + self.output

    @property
    def words(self) -> list[int]:
        """The prompt without the tokens that only stand for pictures."""
        return self.prompt if self.media is None else self.media.words(self.prompt)

    def is_twin(self, other: Sequence) -> bool:
        """Whether their rows are equal: same group, and neither has generated a token."""
        same = self.group is not None and self.group == other.group
        return same and not self.output and not other.output

    @property
    def num_words(self) -> int:
        """Tokens known so far, without those that only stand for pictures."""
        hidden = 0 if self.media is None else self.media.num_placeholders
        return self.num_tokens - hidden

    def tokens_between(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt and output together."""
        size = len(self.prompt)
        return self.prompt[start:stop] + self.output[max(0, start - size) : max(0, stop - size)]
