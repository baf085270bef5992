"""What is wrong with one row of a step, found in what is read of the step anyway."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence as Items

import numpy as np

from mlx_parallm.engine.guard.memory_guard import is_out_of_memory
from mlx_parallm.engine.sampling.sampler import Sampled
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.errors import (
    InvalidRequestError,
    NotANumberError,
    OutOfMemoryError,
    ParallmError,
    SequenceError,
)

log = logging.getLogger(__name__)


def read_faults(sampled: Sampled, sequences: Items[Sequence]) -> dict[int, ParallmError]:
    """Row -> what is wrong with its logits; empty where nothing is.

    Args:
        sequences: whose each sampled row is.
    """
    found: dict[int, ParallmError] = {}
    if sampled.picked is not None:
        forbidden = np.array(sampled.picked)[:, 0] == -np.inf
        for row in np.flatnonzero(forbidden).tolist():
            # A constraint says itself why it cannot be followed.
            if sequences[row].constraint is None:
                found[row] = InvalidRequestError(
                    "The request forbids every token that could come next.",
                    code="no_token_allowed",
                )
    for row in np.flatnonzero(np.isnan(np.array(sampled.totals)[:, 0])).tolist():
        found[row] = NotANumberError("The model's logits for this request are NaN.")
    return found


def fault_of(sequence: Sequence, pooled: np.ndarray | None) -> ParallmError | None:
    """What is wrong with a sequence's pooled states, or with the scores of its prompt."""
    if pooled is not None and not np.isfinite(pooled).all():
        return NotANumberError("The model's hidden states for this request are not finite.")
    if sequence.params.prompt_logprobs is None or sequence.output:
        return None
    if any(score is not None and math.isnan(score.logprob) for score in sequence.prompt_scores):
        return NotANumberError("The model's scores of this prompt are NaN.")
    return None


def unfollowed(sequence: Sequence) -> InvalidRequestError:
    """The error of a sequence whose grammar cannot be followed any further."""
    assert sequence.constraint is not None
    reason = sequence.constraint.error
    log.warning("a grammar could not be followed: %s", reason)
    return InvalidRequestError(
        f"The answer could not follow its grammar any further: {reason}", code="grammar_failed"
    )


def fault_for(error: Exception, what: str = "this request") -> ParallmError:
    """What whoever asked is told of an exception that `what` caused."""
    if is_out_of_memory(error):
        return OutOfMemoryError(f"There is not enough memory for {what} now.")
    if isinstance(error, ParallmError):
        return error
    return SequenceError(f"The server failed on {what}.")
