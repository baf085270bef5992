"""Answers of /v1/rl/rollout: a sample a line, or all in one object."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.engine.sequence import TokenLogprob
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.output.formats import FINGERPRINT, compact, usage_of
from mlx_parallm.server.output.logprobs import finite, shown_at_most
from mlx_parallm.server.rollouts.rewards import Judge
from mlx_parallm.server.schemas.rollouts.rollout import RolloutRequest


class RolloutFormat:
    """Makes the response, or the lines, of one rollout request.

    Args:
        model: as reported to the client.
        judge: what scores the samples.
    """

    def __init__(self, body: RolloutRequest, model: str, judge: Judge | None) -> None:
        self._body = body
        self._judge = judge
        self._top = shown_at_most(body.logprobs or 0)
        self._head = {
            "id": f"rollout-{uuid.uuid4().hex}",
            "object": "rollout",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def follow(self, tracks: Sequence[Track]) -> None:
        """Nothing to prepare: every line names its sample."""

    def delta(self, track: Track, delta: TextDelta, said: Sequence[Event]) -> bytes:
        """The line of a sample that has ended, and was scored."""
        if track.finish_reason is None:
            return b""
        return _line(self.sample(track if self._judge is None else self._judge.sample(track)))

    def end(self, tracks: Sequence[Track]) -> bytes:
        """The last line."""
        return _line({**self._head, "usage": usage_of(tracks)})

    def whole(self, tracks: Sequence[Track]) -> dict[str, Any]:
        """The response."""
        samples = [self.sample(track) for track in tracks]
        return {**self._head, "samples": samples, "usage": usage_of(tracks)}

    def sample(self, track: Track) -> dict[str, Any]:
        """One sample."""
        group, place = divmod(track.index, self._body.n)
        sample: dict[str, Any] = {
            "object": "rollout.sample",
            "index": track.index,
            "prompt_index": group,
            "sample_index": place,
            "prompt_token_ids": track.prompt.ids,
            "token_ids": track.token_ids,
            "logprobs": [finite(entry.logprob) for entry in track.logprobs],
            "processed_logprobs": [_processed(entry) for entry in track.logprobs],
            "weight_versions": track.weight_versions,
            "finish_reason": track.finish_reason,
            "stop_reason": track.stop_reason,
            "text": track.text,
        }
        if self._top:
            sample["top_logprobs"] = [_alternatives(entry, self._top) for entry in track.logprobs]
        if self._judge is not None:
            sample["reward"] = self._judge.reward(track)
        return sample


def _processed(entry: TokenLogprob) -> float:
    if entry.processed is None:
        raise RuntimeError("a rollout's tokens have both log-probabilities")
    return finite(entry.processed)


def _alternatives(entry: TokenLogprob, top: int) -> list[dict[str, float]]:
    return [{"token_id": token, "logprob": finite(value)} for token, value in entry.top[:top]]


def _line(value: dict[str, Any]) -> bytes:
    return f"{compact(value)}\n".encode()
