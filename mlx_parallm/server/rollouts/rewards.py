"""Rewards of samples, by the served model's own reward head, in the same batch."""

from __future__ import annotations

from collections.abc import Sequence as Items

from mlx_parallm.engine.detokenizer import TextDelta
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.heads import ClassificationHead
from mlx_parallm.server.answer import Event
from mlx_parallm.server.flow.dispatch import Dispatcher
from mlx_parallm.server.flow.generation import Collected, Generation, Streamed, StreamFormat, Track
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompt, Prompts
from mlx_parallm.server.pooling import pooled_tracks
from mlx_parallm.server.state import ServerState


class Judge:
    """Scores each sample as soon as it has ended.

    Args:
        head: of one label.
        priority: of the sequences that are scored.
    """

    def __init__(
        self,
        head: ClassificationHead,
        prompts: Prompts,
        dispatcher: Dispatcher,
        priority: int,
        namespace: Namespace,
    ) -> None:
        self._head = head
        self._prompts = prompts
        self._dispatcher = dispatcher
        self._priority = priority
        self._namespace = namespace
        self._samples: dict[int, Track] = {}  # by the id of the sequence that scores them
        self._scores: dict[int, Track] = {}  # by the id of the sample's sequence

    def begins(self, generation: Generation, track: Track) -> bool:
        """Start to score a sample that has ended; False where the track is such a score.

        Raises:
            ParallmError: the engine has no room.
        """
        if track.sequence.id in self._samples:
            return False
        whole = Prompt([*track.prompt.ids, *track.token_ids], None)
        made = pooled_tracks([whole], self._prompts, "last", self._priority, self._namespace)
        self._samples[made[0].sequence.id] = track
        self._scores[track.sequence.id] = made[0]
        self._dispatcher.extend(generation, made)
        return True

    def sample(self, scored: Track) -> Track:
        """The sample that a track has scored."""
        return self._samples[scored.sequence.id]

    def reward(self, sample: Track) -> float:
        """The head's value of a sample that was scored.

        Raises:
            UnsupportedError: the model's hidden states cannot be reached.
        """
        scored = self._scores[sample.sequence.id]
        if scored.pooled is None:
            raise UnsupportedError(
                "This model's hidden states cannot be reached.", param="reward_model"
            )
        return float(self._head.logits(scored.pooled)[0])


def judge_of(
    state: ServerState, reward_model: str | None, priority: int, namespace: Namespace
) -> Judge | None:
    """What scores the samples; None where none was asked for.

    Raises:
        InvalidRequestError, NotFoundError: the model is not served, or is no reward model.
    """
    if reward_model is None:
        return None
    if reward_model not in state.settings.model_names:
        names = ", ".join(state.settings.model_names)
        raise InvalidRequestError(
            f"{reward_model[:200]!r} is not served; this server has {names}.", param="reward_model"
        )
    head = state.loaded().head
    if head is None or len(head.labels) != 1:
        raise UnsupportedError(
            "The served model has no reward head: it needs a *ForSequenceClassification "
            "checkpoint with one label.",
            param="reward_model",
        )
    return Judge(head, state.prompts(), state.dispatcher, priority, namespace)


class _Rewarded(Generation):
    """Samples are told of when their reward is there."""

    judge: Judge | None = None

    def on_delta(self, track: Track, delta: TextDelta, events: Items[Event]) -> None:
        ended = track.finish_reason is not None
        if ended and self.judge is not None and self.judge.begins(self, track):
            return
        super().on_delta(track, delta, events)


class StreamedRollouts(_Rewarded, Streamed):
    """Samples as they end."""

    def __init__(self, tracks: list[Track], style: StreamFormat, judge: Judge | None) -> None:
        super().__init__(tracks, style)
        self.judge = judge


class CollectedRollouts(_Rewarded, Collected):
    """All samples at once."""

    def __init__(self, tracks: list[Track], judge: Judge | None) -> None:
        super().__init__(tracks)
        self.judge = judge
