"""The scheduler by request id, for callers who run the model themselves.

    scheduler = RequestScheduler(max_batch_size=64)
    request_id = scheduler.add_request(prompt_tokens=[1, 2, 3], max_tokens=100)
    batch, phase = scheduler.get_next_batch()
    scheduler.update_request(request_id, new_token=5)
    scheduler.get_request_status(request_id)

Who computes what in which step is decided by engine/scheduler.py, which the server runs
too. Here a step is handed out in parts: first the requests whose prompts are to be
computed ("prefill"), then those that get one more token ("decode"). Every request of a
batch gets its next token through update_request before the next step begins.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from mlx_parallm.engine import scheduler
from mlx_parallm.engine.plan import Plan, SchedulerConfig
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence, Status
from mlx_parallm.errors import ContextLengthError, InvalidRequestError, NotFoundError

KEPT_RESULTS = 1024
_PARAMS = frozenset(option.name for option in fields(SamplingParams)) - {"max_tokens"}


class RequestPhase(Enum):
    """What a request needs next."""

    PREFILL = 1
    DECODE = 2


@dataclass
class RequestMetadata:
    """A request as get_next_batch shows it.

    Attributes:
        seq_length: tokens of prompt and output so far.
        kv_cache_pages: what the caller gave to update_request, in order.
    """

    request_id: str
    prompt_tokens: list[int]
    max_tokens: int
    generated_tokens: list[int]
    phase: RequestPhase
    seq_length: int
    kv_cache_pages: list[int] = field(default_factory=list)


class RequestScheduler(scheduler.ContinuousBatchScheduler):
    """The engine's scheduler with request ids instead of sequences.

    The MILI reference calls it ContinuousBatchScheduler, by which name it can be imported from
    here and from mlx_parallm.mili.

    Args:
        max_batch_size: requests that run at once.
        prefill_batch_size, decode_batch_size: requests in one batch of each kind at most.
        max_seq_length: tokens of a prompt and its output at most.
    """

    def __init__(
        self,
        max_batch_size: int = 64,
        prefill_batch_size: int = 32,
        decode_batch_size: int = 256,
        max_seq_length: int = 32768,
    ) -> None:
        for size in (max_batch_size, prefill_batch_size, decode_batch_size, max_seq_length):
            if size < 1:
                raise InvalidRequestError("sizes are at least 1")
        most = max_batch_size * max_seq_length
        super().__init__(
            SchedulerConfig(
                max_batch_size=max_batch_size,
                # Whole prompts: the caller sees no chunks.
                prefill_chunk=most,
                idle_prefill_tokens=most,
                max_width=max_seq_length,
            )
        )
        self.max_seq_length = max_seq_length
        self._sizes = {"prefill": prefill_batch_size, "decode": decode_batch_size}
        self._requests: OrderedDict[str, Sequence] = OrderedDict()
        self._ids: dict[int, str] = {}
        self._pages: dict[str, list[int]] = {}
        self._due: deque[tuple[list[Sequence], str]] = deque()
        self._handed: list[Sequence] = []

    def add_request(self, prompt_tokens: Items[int], max_tokens: int = 128, **kwargs: Any) -> str:
        """Let a request wait for its first batch.

        Args:
            kwargs: fields of SamplingParams, such as temperature or stop_token_ids, and
                `priority`.

        Returns:
            its id.

        Raises:
            InvalidRequestError: no tokens, or an unknown setting.
            ContextLengthError: over max_seq_length.
        """
        if not prompt_tokens or max_tokens < 1:
            raise InvalidRequestError("a request has at least one token, and asks for one")
        total = len(prompt_tokens) + max_tokens
        if total > self.max_seq_length:
            raise ContextLengthError(
                f"{len(prompt_tokens)} prompt tokens and {max_tokens} new ones are over "
                f"{self.max_seq_length}"
            )
        priority = int(kwargs.pop("priority", 0))
        for name in kwargs:
            if name not in _PARAMS:
                raise InvalidRequestError(f"there is no setting {name!r}", param=name)
        params = SamplingParams(max_tokens=max_tokens, **kwargs)
        sequence = Sequence(list(prompt_tokens), params, priority=priority)
        request_id = str(uuid.uuid4())
        self._requests[request_id], self._ids[sequence.id] = sequence, request_id
        self._pages[request_id] = []
        self.add(sequence)
        return request_id

    def get_next_batch(self) -> tuple[list[RequestMetadata], str]:
        """The next requests to compute, and "prefill" or "decode".

        A batch is empty where nothing is left to do, or where requests of earlier
        batches have not got their tokens yet.
        """
        self._handed = [s for s in self._handed if s.in_flight and s.status is Status.RUNNING]
        if not self._due and not self._handed:
            self._plan_step()
        while self._due:
            sequences, phase = self._due.popleft()
            left = [s for s in sequences if s.status is Status.RUNNING]  # not cancelled since
            if left:
                self._handed += left
                kind = RequestPhase[phase.upper()]
                return [self._metadata(s, kind) for s in left], phase
        return [], "decode"

    def update_request(
        self, request_id: str, new_token: int, kv_cache_page: int | None = None
    ) -> None:
        """Give a request the token that its batch computed.

        Args:
            kv_cache_page: remembered in the request's metadata.

        Raises:
            NotFoundError: no such request.
            InvalidRequestError: it was in no batch since its last token.
        """
        sequence = self._request(request_id)
        if sequence not in self._handed:
            raise InvalidRequestError(f"request {request_id} waits for no token")
        self._handed.remove(sequence)
        if kv_cache_page is not None:
            self._pages[request_id].append(kv_cache_page)
        self.update(sequence, [int(new_token)])
        self._forget_old()

    def cancel_request(self, request_id: str) -> None:
        """End a request; what it has so far is its result.

        Raises:
            NotFoundError: no such request.
        """
        self.finish(self._request(request_id), FinishReason.ABORT)
        self._forget_old()

    def get_request_status(self, request_id: str) -> dict[str, Any]:
        """status "processing", "completed" or "not_found", and how many tokens."""
        sequence = self._requests.get(request_id)
        if sequence is None:
            return {"status": "not_found"}
        done = sequence.status is Status.FINISHED
        generated = len(sequence.output)
        return {
            "status": "completed" if done else "processing",
            "tokens_generated": generated,
            "tokens_remaining": 0 if done else sequence.params.max_tokens - generated,
        }

    def get_completed_result(self, request_id: str) -> dict[str, Any] | None:
        """What a request gave; None while it runs, or where it is unknown.

        The newest KEPT_RESULTS results are kept.
        """
        sequence = self._requests.get(request_id)
        if sequence is None or sequence.finish_reason is None:
            return None
        return {
            "request_id": request_id,
            "prompt_tokens": list(sequence.prompt),
            "tokens": list(sequence.output),
            "total_tokens": sequence.num_tokens,
            "finish_reason": sequence.finish_reason.value,
        }

    def _plan_step(self) -> None:
        plan = Plan()
        while self.has_work and not plan.decode:
            plan = self.schedule()
            self.launched(plan)
            if plan.empty:
                return
        parts = {
            "prefill": [s for s in plan.decode if not s.output],
            "decode": [s for s in plan.decode if s.output],
        }
        for phase, sequences in parts.items():
            size = self._sizes[phase]
            for first in range(0, len(sequences), size):
                self._due.append((sequences[first : first + size], phase))

    def _metadata(self, sequence: Sequence, phase: RequestPhase) -> RequestMetadata:
        request_id = self._ids[sequence.id]
        return RequestMetadata(
            request_id,
            list(sequence.prompt),
            sequence.params.max_tokens,
            list(sequence.output),
            phase,
            sequence.num_tokens,
            list(self._pages[request_id]),
        )

    def _request(self, request_id: str) -> Sequence:
        sequence = self._requests.get(request_id)
        if sequence is None:
            raise NotFoundError(f"there is no request {request_id!r}")
        return sequence

    def _forget_old(self) -> None:
        done = [key for key, s in self._requests.items() if s.status is Status.FINISHED]
        for request_id in done[: max(0, len(done) - KEPT_RESULTS)]:
            sequence = self._requests.pop(request_id)
            del self._ids[sequence.id], self._pages[request_id]


def __getattr__(name: str) -> type[RequestScheduler]:
    """RequestScheduler by its documented name, without defining a second class of that name."""
    if name == "ContinuousBatchScheduler":
        return RequestScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
