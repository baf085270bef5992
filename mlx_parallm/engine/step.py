"""A step of the engine: what is launched, and what is read when it has been computed."""

from __future__ import annotations

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.extended_mind import Cited
from mlx_parallm.cache.span import Ragged
from mlx_parallm.engine.guard.row_faults import read_faults
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.sampling.sampler import Sampled
from mlx_parallm.engine.sequence import Output, Sequence, TokenLogprob
from mlx_parallm.errors import ParallmError
from mlx_parallm.memory.citations import TokenCitation


@dataclass(slots=True)
class Result:
    """What a step computed for one sequence.

    Attributes:
        logprobs: one entry a token, where asked for.
        complete: the sequence only wanted its prompt computed, and it is.
        citations: one entry a token, where asked for.
        pooled: (D,) float32 of a pooling sequence.
        predicted: (rows, outputs) float32 of a prediction.
        error: what is wrong with the sequence behind these tokens; it ends.
    """

    sequence: Sequence
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    complete: bool = False
    pooled: np.ndarray | None = None
    predicted: np.ndarray | None = None
    citations: list[TokenCitation] | None = None
    error: ParallmError | None = None


@dataclass(slots=True)
class PromptScores:
    """Log-probabilities of one chunk's prompt tokens, still on the device.

    Attributes:
        first: index in the prompt of the first token scored.
        chosen: (n,); top_ids, top_logprobs: (n, k).
    """

    sequence: Sequence
    first: int
    chosen: mx.array
    top_ids: mx.array
    top_logprobs: mx.array

    @property
    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        return [self.chosen, self.top_ids, self.top_logprobs]


@dataclass(slots=True)
class Guessed:
    """Guesses that a step verifies, and what it sampled at their places.

    Attributes:
        proposal: the guesses.
        layout: which row each sampled token is of, and after how many guesses.
    """

    proposal: Proposal
    layout: Ragged

    def accepted(self, guesses: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """(B,) guesses up to each row's first wrong one.

        Args:
            guesses: (B, k); tokens: (N,) sampled.
        """
        most = guesses.shape[1]
        counts = self.proposal.counts[:, None] > np.arange(most)
        # Places after a row's last guess are padding.
        places = np.minimum(self.layout.firsts[:, None] + np.arange(most), len(tokens) - 1)
        right = (tokens[places] == guesses) & counts
        return np.asarray(np.cumprod(right, axis=1).sum(axis=1))


@dataclass(slots=True)
class Found:
    """What a step gave, as plain data; ranks tell each other.

    Attributes:
        number: of the step.
        tokens, logprobs, errors: of each sequence that samples, in the order of the step; see
            Result.
        accepted: guesses of each that were right; empty where nothing was guessed.
        scores: of each chunk of a prompt that is scored, in the order of the step.
        pooled: (D,) of each sequence that is complete, where it is pooled.
    """

    number: int
    tokens: list[list[int]] = field(default_factory=list)
    logprobs: list[list[TokenLogprob] | None] = field(default_factory=list)
    errors: list[ParallmError | None] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    scores: list[list[TokenLogprob]] = field(default_factory=list)
    pooled: list[np.ndarray | None] = field(default_factory=list)


@dataclass(slots=True)
class Launched:
    """A step that is computing.

    Attributes:
        number: counted from 1.
        sampled: None where nothing samples, or another rank does.
        found: what it gave, once it was read.
        waited: it was launched after the step before was read.
        cited, cited_by: see Computed.
        tokens: how many the model was given.
        masked: some rows keep to a grammar.
    """

    number: int
    decode: list[Sequence]
    sampled: Sampled | None
    guessed: Guessed | None
    scores: list[PromptScores]
    complete: list[tuple[Sequence, mx.array | None]]
    began: float
    waited: bool
    cited: list[Cited] = field(default_factory=list)
    cited_by: dict[int, tuple[int, int]] = field(default_factory=dict)
    tokens: int = 0
    masked: bool = False
    found: Found | None = None


def output_of(result: Result, tokens: list[int], first: bool) -> Output:
    """What a sequence is sent of a step.

    Args:
        tokens: those of the result that count.
        first: nothing was sent to it before.
    """
    sequence, logprobs, cited = result.sequence, result.logprobs, result.citations
    wants_prompt = sequence.params.prompt_logprobs is not None
    scores = sequence.prompt_scores or [None]  # a prompt of one token has no scores
    return Output(
        sequence.id,
        token_ids=tokens,
        logprobs=logprobs[: len(tokens)] if logprobs is not None else None,
        prompt_logprobs=list(scores) if first and wants_prompt else None,
        finish_reason=sequence.finish_reason,
        cached_tokens=sequence.num_cached,
        pooled=result.pooled,
        predicted=result.predicted,
        citations=None if cited is None else cited[: len(tokens)],
    )


def read_step(launched: Launched) -> Found:
    """Wait for what a step computed, and read it."""
    found = Found(launched.number)
    found.scores = [_read_scores(scores) for scores in launched.scores]
    found.pooled = [None if p is None else np.array(p) for _, p in launched.complete]
    if launched.sampled is not None and launched.guessed is None:
        _read_plain(launched.sampled, launched.decode, found)
    elif launched.sampled is not None and launched.guessed is not None:
        _read_guessed(launched.sampled, launched.guessed, launched.decode, found)
    return found


def _read_plain(sampled: Sampled, sequences: list[Sequence], found: Found) -> None:
    tokens: list[int] = np.array(sampled.tokens).tolist()
    logprobs = read_logprobs(sampled, tokens, sequences)
    faults = read_faults(sampled, sequences)
    for row, token in enumerate(tokens):
        right = row not in faults
        found.tokens.append([token] if right else [])
        found.logprobs.append([logprobs[row]] if right and row in logprobs else None)
        found.errors.append(faults.get(row))


def _read_guessed(
    sampled: Sampled, guessed: Guessed, sequences: list[Sequence], found: Found
) -> None:
    """Accept each row's guesses up to its first wrong one."""
    tokens = np.array(sampled.tokens)
    accepted = guessed.accepted(np.array(guessed.proposal.guesses), tokens).tolist()
    rows = [sequences[row] for row in guessed.layout.rows.tolist()]
    logprobs = read_logprobs(sampled, tokens.tolist(), rows)
    faults = read_faults(sampled, rows)
    for first, count in zip(guessed.layout.firsts.tolist(), accepted, strict=True):
        right = range(first, first + count + 1)
        wrong = next((at for at in right if at in faults), None)
        right = range(first, right.stop if wrong is None else wrong)
        found.tokens.append(tokens[right.start : right.stop].tolist())
        found.logprobs.append([logprobs[at] for at in right if at in logprobs] or None)
        found.errors.append(None if wrong is None else faults[wrong])
    found.accepted = accepted


def _read_scores(scores: PromptScores) -> list[TokenLogprob]:
    """A chunk's prompt log-probabilities."""
    sequence, k = scores.sequence, scores.sequence.params.prompt_logprobs or 0
    chosen = np.array(scores.chosen).tolist()
    ids, values = np.array(scores.top_ids).tolist(), np.array(scores.top_logprobs).tolist()
    tokens = sequence.prompt[scores.first : scores.first + len(chosen)]
    return [
        TokenLogprob(token, logprob, tuple(zip(i[:k], v[:k], strict=True)))
        for token, logprob, i, v in zip(tokens, chosen, ids, values, strict=True)
    ]


def keep_scores(scores: PromptScores, read: list[TokenLogprob]) -> None:
    """Put a chunk's prompt log-probabilities into its sequence."""
    kept = scores.sequence.prompt_scores
    # A preempted prompt is computed again, and its scores replaced by equal ones.
    del kept[scores.first :]
    if not kept:
        kept.append(None)
    kept += read


def read_logprobs(
    sampled: Sampled, tokens: list[int], sequences: list[Sequence]
) -> dict[int, TokenLogprob]:
    """Row -> the log-probabilities of its token, where asked for."""
    scores = sampled.scores
    if scores is None:
        return {}
    chosen = np.array(scores.chosen).tolist()
    ids, values = np.array(scores.top_ids).tolist(), np.array(scores.top_values).tolist()
    asked = None if scores.asked is None else np.array(scores.asked).tolist()
    processed = None if scores.processed is None else np.array(scores.processed).tolist()
    found = {}
    for place, row in enumerate(sampled.logprob_rows):
        params = sequences[row].params
        k = params.logprobs or 0
        top = tuple(zip(ids[place][:k], values[place][:k], strict=True))
        if asked is not None and params.logprob_token_ids:
            # A shorter row is filled up to the longest one.
            top = tuple(zip(params.logprob_token_ids, asked[place], strict=False))
        drawn_from = None
        if processed is not None and params.processed_logprobs:
            drawn_from = processed[place]
        found[row] = TokenLogprob(tokens[row], chosen[place], top, drawn_from)
    return found
