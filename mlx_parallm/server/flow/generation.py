"""Answers in the making: what the engine sends, gathered by sequence and by request.

A Track follows one sequence, a Generation the sequences of one request. A request that does
not stream is collected behind a future; one that streams turns every output into bytes at once.
All of this runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Items
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mlx_parallm.engine.detokenizer import TextDelta, TextStream
from mlx_parallm.engine.sequence import FinishReason, Output, Sequence, TokenLogprob
from mlx_parallm.errors import (
    ParallmError,
    RequestTimeoutError,
    SequenceError,
    UnavailableError,
)
from mlx_parallm.memory.citations import CitedAnswer
from mlx_parallm.server.answer import Call, CallEnd, Event, Reader, Text
from mlx_parallm.server.answer.blocks import Blocks
from mlx_parallm.server.answer.thought_counter import ThoughtCounter
from mlx_parallm.server.input.prompts import Prompt
from mlx_parallm.server.observing.record import current

# Bytes of a stream that are kept for a client that does not read them.
_MAX_UNREAD = 32 * 1024**2


class Track:
    """One sequence and what it has said so far.

    Args:
        index: of the choice in the response.
        reader: finds thinking and tool calls in the text; None leaves the text as it is.
        thoughts: counts the tokens of thinking.
        one_call: end after the first tool call.

    Attributes:
        blocks: what was said so far.
    """

    __slots__ = (
        "begun_at",
        "blocks",
        "cached_tokens",
        "cited_answer",
        "ended_at",
        "finish_reason",
        "first_token_at",
        "index",
        "logprobs",
        "one_call",
        "pooled",
        "predicted",
        "prompt",
        "prompt_logprobs",
        "reader",
        "sequence",
        "stop_reason",
        "stream",
        "thoughts",
        "token_ids",
    )

    def __init__(
        self,
        sequence: Sequence,
        stream: TextStream,
        index: int,
        prompt: Prompt,
        reader: Reader | None = None,
        thoughts: ThoughtCounter | None = None,
        one_call: bool = False,
    ) -> None:
        self.sequence = sequence
        self.stream = stream
        self.index = index
        self.prompt = prompt
        self.reader = reader
        self.thoughts = thoughts
        self.one_call = one_call
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.blocks = Blocks()
        self.cited_answer = CitedAnswer(sequence.memory)
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.cached_tokens = 0
        self.pooled: np.ndarray | None = None
        self.predicted: np.ndarray | None = None
        self.begun_at = time.perf_counter()
        self.first_token_at: float | None = None
        self.ended_at: float | None = None

    @property
    def prefill_s(self) -> float:
        """Seconds from the request to the first output; until now where there is none."""
        return (self.first_token_at or time.perf_counter()) - self.begun_at

    @property
    def decode_s(self) -> float:
        """Seconds from the first output to the last one so far."""
        if self.first_token_at is None:
            return 0.0
        return (self.ended_at or time.perf_counter()) - self.first_token_at

    @property
    def text(self) -> str:
        """The text so far, without thinking and what became tool calls."""
        return self.blocks.text

    @property
    def thought(self) -> str:
        """The thinking so far."""
        return self.blocks.thought

    @property
    def calls(self) -> list[Call]:
        """The tool calls that have begun."""
        return self.blocks.calls

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of thinking so far."""
        return 0 if self.thoughts is None else self.thoughts.count

    @property
    def cited(self) -> list[dict[str, Any]] | None:
        """The memories that the answer used, as a response shows them; None if not asked."""
        return self.cited_answer.shown

    @property
    def weight_versions(self) -> list[int]:
        """The version of the adapter that gave each token, or of the model's weights where the
        request has none; 0 is the model as loaded."""
        return self.sequence.versions[: len(self.token_ids)]

    @property
    def base_weight_versions(self) -> list[int]:
        """The version of the model's weights below each token."""
        return self.sequence.base_versions[: len(self.token_ids)]

    @property
    def mean_logprob(self) -> float:
        """Of the generated tokens; an answer without any is the worst."""
        if not self.logprobs:
            return float("-inf")
        return sum(entry.logprob for entry in self.logprobs) / len(self.logprobs)

    def feed(self, output: Output) -> tuple[TextDelta, Items[Event]]:
        """Take an output of the engine; returns what is new, as tokens and as events.

        Raises:
            Exception: what the engine says went wrong.
        """
        if output.finish_reason is FinishReason.ERROR:
            raise output.error or SequenceError("The sequence failed.")
        if output.finish_reason is FinishReason.ABORT:
            # Those that we abort are not fed any more: this one was ended by the engine.
            raise UnavailableError("The request was aborted: the server is shutting down.")
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()
        delta = self.stream.push(output)
        events: Items[Event] = ()
        if self.reader is not None:
            events = self._read(self.reader, delta)
        elif delta.text:
            events = (Text(delta.text),)
        if self.thoughts is not None:
            self.thoughts.add(delta.token_ids)
        for event in events:
            self._note(event)
        self._take(output, delta)
        return delta, events

    def _read(self, reader: Reader, delta: TextDelta) -> list[Event]:
        events = reader.feed(delta.text)
        if delta.finish_reason is not None:
            events += reader.finish(delta.finish_reason is FinishReason.LENGTH)
        if self.one_call:
            ends = [place for place, event in enumerate(events) if isinstance(event, CallEnd)]
            if ends:
                del events[ends[0] + 1 :]
                delta.finish_reason = FinishReason.STOP
        return events

    def _note(self, event: Event) -> None:
        self.blocks.add(event)
        if self.thoughts is not None and isinstance(event, (Text, CallEnd)):
            self.thoughts.may_begin = isinstance(event, CallEnd)

    def _take(self, output: Output, delta: TextDelta) -> None:
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs.extend(delta.logprobs)
        if output.pooled is not None:
            self.pooled = output.pooled
        if output.predicted is not None:
            self.predicted = output.predicted
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        self.cited_answer.add(delta.token_ids, output.citations)
        if output.cached_tokens > self.cached_tokens:
            self.cached_tokens = output.cached_tokens
        if delta.finish_reason is not None:
            self.ended_at = time.perf_counter()
            self.stop_reason = delta.stop_reason
            self.finish_reason = delta.finish_reason.value
            if self.calls and delta.finish_reason is FinishReason.STOP:
                self.finish_reason = "tool_calls"


def first_of_each_prompt(tracks: Items[Track]) -> list[Track]:
    """The tracks without those that share an earlier one's prompt: it is counted once."""
    return list({id(track.prompt): track for track in reversed(tracks)}.values())


class Generation:
    """The sequences of one request, until all have ended or one has failed.

    Made while the request is being answered: `client` is who sent it.
    """

    def __init__(self, tracks: list[Track]) -> None:
        self.tracks = tracks
        self.error: ParallmError | None = None
        record = current.get()
        self.client = None if record is None else record.client
        if record is not None:
            record.generations.append(self)
        self.submitted_at = time.perf_counter()
        self.first_output_at: float | None = None
        self.ended_at: float | None = None
        self._open = {track.sequence.id: track for track in tracks}

    @property
    def sequences(self) -> list[Sequence]:
        """What is to be submitted to the engine."""
        return [track.sequence for track in self.tracks]

    @property
    def open_ids(self) -> list[int]:
        """Ids of the sequences that have not ended."""
        return list(self._open)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.ended_at is not None

    @property
    def prompt_tokens(self) -> int:
        """Of all its prompts; one that several choices share counts once."""
        return sum(len(track.prompt.ids) for track in first_of_each_prompt(self.tracks))

    @property
    def cached_tokens(self) -> int:
        """Of the prompts' tokens, those found in the prefix cache."""
        return sum(track.cached_tokens for track in first_of_each_prompt(self.tracks))

    @property
    def generated_tokens(self) -> int:
        """Of all its sequences so far."""
        return sum(len(track.token_ids) for track in self.tracks)

    @property
    def finish_reasons(self) -> list[str]:
        """Of its sequences; "error" for those that have not ended well."""
        return [track.finish_reason or "error" for track in self.tracks]

    def spend(self, tokens: int) -> None:
        """Count tokens against what the client may use."""
        if self.client is not None:
            self.client.spend(tokens)

    def add(self, tracks: Items[Track]) -> None:
        """Wait for more sequences, which are no answers of their own."""
        self._open.update({track.sequence.id: track for track in tracks})

    def feed(self, output: Output) -> bool:
        """Take an output of one of the sequences; says whether that one has ended.

        Raises:
            Exception: the sequence failed; the caller fails the whole request.
        """
        track = self._open[output.sequence_id]
        delta, events = track.feed(output)
        if self.first_output_at is None:
            self.first_output_at = time.perf_counter()
        self.on_delta(track, delta, events)
        if track.finish_reason is None:
            return False
        del self._open[output.sequence_id]
        if not self._open:
            self._end()
        return True

    def fail(self, error: ParallmError) -> None:
        """End everything with an error, unless it has ended already."""
        if not self.ended:
            self.error = error
            self._open.clear()
            self._end()

    def on_delta(self, track: Track, delta: TextDelta, events: Items[Event]) -> None:
        """Called with everything that is new."""

    def on_end(self) -> None:
        """Called once, when all sequences have ended or `error` is set."""

    def _end(self) -> None:
        self.ended_at = time.perf_counter()
        self.on_end()


class Collected(Generation):
    """A generation whose answer is read as a whole, behind a future.

    Args:
        at_once: an idle engine does not wait for more requests to begin with.
    """

    def __init__(self, tracks: list[Track], *, at_once: bool = False) -> None:
        super().__init__(tracks)
        self.at_once = at_once
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_end(self) -> None:
        if self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
            # Its reader may be gone; then nobody is to be told of an error nobody retrieved.
            self.done.exception()
        else:
            self.done.set_result(None)


class StreamFormat(Protocol):
    """Makes the events of a stream."""

    def follow(self, tracks: Items[Track]) -> None:
        """Say which tracks the events are about, before the first one."""
        ...

    def delta(self, track: Track, delta: TextDelta, said: Items[Event]) -> bytes:
        """The events for something new; empty for nothing to show."""
        ...

    def end(self, tracks: Items[Track]) -> bytes:
        """The events after the last token."""
        ...


@runtime_checkable
class TellsFailure(Protocol):
    """A format whose streams end with an event of their own when they fail."""

    def failure(self, error: ParallmError) -> bytes:
        """The events after a failure."""
        ...


class Streamed(Generation):
    """A generation whose events are read as they come."""

    def __init__(self, tracks: list[Track], style: StreamFormat) -> None:
        super().__init__(tracks)
        self.style = style
        style.follow(tracks)
        self._pieces: list[bytes] = []
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None

    def on_delta(self, track: Track, delta: TextDelta, events: Items[Event]) -> None:
        piece = self.style.delta(track, delta, events)
        if not piece:
            return
        self._unread += len(piece)
        if self._unread > _MAX_UNREAD:
            raise RequestTimeoutError("The client does not read its stream.")
        self._pieces.append(piece)
        self._wake()

    def on_end(self) -> None:
        if self.error is None:
            self._pieces.append(self.style.end(self.tracks))
        self._wake()

    async def next_piece(self) -> bytes | None:
        """All events that have come since the last call; None after the last one.

        Raises:
            ParallmError: the request failed; events that came before were returned.
        """
        while not self._pieces:
            if self.error is not None:
                raise self.error
            if self.ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        # A reader that is slower than the engine gets several steps at once.
        piece = b"".join(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
        self._pieces.clear()
        self._unread = 0
        return piece

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
