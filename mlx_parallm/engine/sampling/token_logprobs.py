"""Log-probabilities of sampled tokens, for the rows of a batch that asked for them.

Under the raw distribution, as the model gave it, or under the one that the token was really
drawn from; as log-probabilities or as logits.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import mlx.core as mx

from mlx_parallm.cpu import ops
from mlx_parallm.engine.sequence import LOGPROBS_MODES, LogprobsMode, SamplingParams


@dataclass(slots=True)
class TokenScores:
    """What R rows asked for, still on the device.

    Attributes:
        chosen: (R,) float32, of the sampled tokens.
        top_ids, top_values: (R, k), best first, k >= 1.
        asked: (R, m) of the tokens that rows named; behind a row's last one anything.
        processed: (R,) float32, of the sampled tokens, under what they were drawn from; None
            where no row wants it.
    """

    chosen: mx.array
    top_ids: mx.array
    top_values: mx.array
    asked: mx.array | None = None
    processed: mx.array | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        found = [self.chosen, self.top_ids, self.top_values, self.asked, self.processed]
        return [array for array in found if array is not None]


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens were picked, the raw logits and what was made of them.

    Attributes:
        raw: (B, V) float32 logits of the model.
        processed: (B, V) after penalties, bias and forbidden tokens.
        chances: (S, V) what the S rows that are drawn at random were drawn from, not
            normalised; None where all rows are greedy.
        places: row -> its place in `chances`.
        tokens: (B,) the sampled ones.
    """

    raw: mx.array
    processed: mx.array
    chances: mx.array | None
    places: dict[int, int]
    tokens: mx.array


class LogprobRows:
    """The rows of one composition of the batch that asked for log-probabilities.

    Attributes:
        rows: their indices, those with the same mode together.
    """

    def __init__(self, params: Items[SamplingParams]) -> None:
        self._params = params
        asking = [row for row, p in enumerate(params) if p.logprobs is not None]
        by_mode = {
            mode: [row for row in asking if params[row].logprobs_mode == mode]
            for mode in LOGPROBS_MODES
        }
        self._by_mode = {mode: rows for mode, rows in by_mode.items() if rows}
        self.rows = [row for rows in self._by_mode.values() for row in rows]
        self._top = max([params[row].logprobs or 0 for row in asking] + [1])
        self._wants_both = any(params[row].processed_logprobs for row in asking)
        named = [params[row].logprob_token_ids for row in self.rows]
        longest = max(map(len, named), default=0)
        self._named = (
            mx.array([[*ids, *[0] * (longest - len(ids))] for ids in named]) if longest else None
        )

    def score(self, draw: Draw) -> TokenScores | None:
        """What the rows asked for; None where there are none."""
        if not self.rows:
            return None
        parts = [self._part(mode, rows, draw) for mode, rows in self._by_mode.items()]
        values, totals = (_joined([part[i] for part in parts]) for i in (0, 1))
        tokens = draw.tokens[mx.array(self.rows)]
        chosen, ids, top = scores_of(values, totals, tokens, self._top)
        asked = None
        if self._named is not None:
            asked = mx.take_along_axis(values, self._named, axis=-1) - totals
        processed = self._processed(draw, tokens) if self._wants_both else None
        return TokenScores(chosen, ids, top, asked, processed)

    def _processed(self, draw: Draw, tokens: mx.array) -> mx.array:
        """(R,) of all rows, whatever their modes."""
        values = self._drawn_from(self.rows, draw)
        chosen = mx.take_along_axis(values, tokens[:, None], axis=-1) - ops.logsumexp(values)
        return chosen[:, 0]

    def _part(self, mode: LogprobsMode, rows: list[int], draw: Draw) -> tuple[mx.array, mx.array]:
        """(R, V) logits of rows with one mode, and (R, 1) what is subtracted from them."""
        raw = mode.startswith("raw")
        values = draw.raw[mx.array(rows)] if raw else self._drawn_from(rows, draw)
        if mode.endswith("logits"):
            return values, mx.zeros((len(rows), 1))
        return values, ops.logsumexp(values)

    def _drawn_from(self, rows: list[int], draw: Draw) -> mx.array:
        """(R, V) logits of the distributions that tokens of the rows are drawn from.

        A greedy row draws from none: there they are the processed logits as they are.
        """
        mine = [self._params[row] for row in rows]
        temperatures = [1.0 if p.is_greedy else p.temperature for p in mine]
        values = draw.processed[mx.array(rows)] / mx.array(temperatures)[:, None]
        cut = [place for place, p in enumerate(mine) if not p.is_greedy and p.has_cuts]
        if cut and draw.chances is not None:
            chances = draw.chances[mx.array([draw.places[rows[place]] for place in cut])]
            where = mx.array(cut)
            values[where] = mx.where(chances > 0, values[where], -float("inf"))
        return values


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def token_logprobs(
    logits: mx.array, tokens: mx.array, top: int
) -> tuple[mx.array, mx.array, mx.array]:
    """Log-probabilities of tokens, and of the most likely ones.

    Args:
        logits: (..., V) float32.
        tokens: (...) int.
        top: how many alternatives, k >= 1.

    Returns:
        (...) chosen, (..., k) ids and (..., k) log-probabilities, best first.
    """
    return scores_of(logits, ops.logsumexp(logits), tokens, top)


def token_scores(
    logits: mx.array, tokens: mx.array, top: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The same with logits in place of log-probabilities."""
    return scores_of(logits, mx.zeros(1), tokens, top)


def scores_of(
    values: mx.array, totals: mx.array, tokens: mx.array, top: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The same of (..., V) values, less (..., 1) totals."""
    chosen = mx.take_along_axis(values, tokens[..., None], axis=-1) - totals
    if top == 1:
        ids = mx.argmax(values, axis=-1, keepdims=True)
    else:
        ids = mx.argpartition(-values, kth=top - 1, axis=-1)[..., :top]
        order = mx.argsort(-mx.take_along_axis(values, ids, axis=-1), axis=-1)
        ids = mx.take_along_axis(ids, order, axis=-1)
    return chosen[..., 0], ids, mx.take_along_axis(values, ids, axis=-1) - totals
