"""From a validated request to the tracks of its sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.grammar import Constraint
from mlx_parallm.engine.sequence import SamplingParams
from mlx_parallm.engine.sequence import Sequence as EngineSequence
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.server.answer import Dialect, Reader
from mlx_parallm.server.answer.thought_counter import ThoughtCounter
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import DEFAULT_MAX_TOKENS, Prompt, Prompts
from mlx_parallm.server.input.structured import calls_of, gate_before_answer
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.generate import GenerateFields
from mlx_parallm.server.schemas.sampling import SamplingFields


async def completion_tracks(
    body: CompletionRequest,
    prompts: Prompts,
    tokenizer: Any,
    memory: MemoryRequest | None = None,
    *,
    namespace: Namespace,
    default_max_tokens: int | None = DEFAULT_MAX_TOKENS,
    context: int | None = None,
    at_most: int | None = None,
) -> list[Track]:
    """num_candidates tracks for each prompt, in the prompts' order.

    Args:
        namespace: of the request, see prefix_namespace(); also below.
        default_max_tokens: where the body has no max_tokens; cut to what is left of the
            context. None: all of it.
        context: tokens of prompt and answer together, where it is less than the model's.
        at_most: tokens to generate, cut to what is left instead of refused.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    scored = prompts.num_logprobs(body.logprobs, "logprobs")
    if scored is None and body.num_candidates > body.n:
        # best_of ranks by them.
        scored = 0
    asked = [
        prompts.num_logprobs(body.prompt_logprobs, "prompt_logprobs"),
        scored if body.echo and body.logprobs is not None else None,
    ]
    of_prompt = max((value for value in asked if value is not None), default=None)
    constraint = await prompts.constraint(await prompts.structure(body))
    tracks: list[Track] = []
    for prompt in await prompts.completion(body):
        max_tokens = prompts.max_tokens(
            body.max_tokens, default_max_tokens, prompt, context, at_most
        )
        params = prompts.sampling(
            body, max_tokens=max_tokens, logprobs=scored, prompt_logprobs=of_prompt
        )
        for sequence in _sequences(
            prompt, params, body.num_candidates, body.priority, memory, namespace, constraint
        ):
            stream = _stream(tokenizer, sequence, body)
            tracks.append(Track(sequence, stream, len(tracks), prompt))
    return tracks


async def text_tracks(
    texts: Sequence[str],
    body: GenerateFields,
    prompts: Prompts,
    logprobs: int | None = None,
    memory: MemoryRequest | None = None,
    *,
    namespace: Namespace,
) -> list[Track]:
    """A track for each text.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    constraint = await prompts.constraint(await prompts.structure(body))
    tracks: list[Track] = []
    for prompt in await prompts.texts(texts):
        max_tokens = prompts.max_tokens(body.max_tokens, None, prompt)
        params = prompts.sampling(
            body, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=None
        )
        if params.seed is not None and tracks:
            params = replace(params, seed=(params.seed + len(tracks)) % 2**64)
        for sequence in _sequences(prompt, params, 1, body.priority, memory, namespace, constraint):
            stream = _stream(prompts.tokenizer, sequence, body)
            tracks.append(Track(sequence, stream, len(tracks), prompt))
    return tracks


async def chat_tracks(
    body: ChatCompletionRequest,
    prompts: Prompts,
    tokenizer: Any,
    memory: MemoryRequest | None = None,
    *,
    namespace: Namespace,
    context: int | None = None,
    at_most: int | None = None,
    before: Sequence[int] = (),
) -> list[Track]:
    """n tracks for the conversation; arguments as in completion_tracks().

    Args:
        before: token ids that stand before the conversation.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    prompt = await prompts.chat(body, before)
    asked = body.max_completion_tokens or body.max_tokens
    params = prompts.sampling(
        body,
        max_tokens=prompts.max_tokens(asked, None, prompt, context, at_most),
        logprobs=prompts.num_logprobs(body.top_logprobs or 0, "top_logprobs")
        if body.logprobs
        else None,
        prompt_logprobs=prompts.num_logprobs(body.prompt_logprobs, "prompt_logprobs"),
    )
    tools = _readable_tools(body)
    shown = prompts.dialect.shown_tokens(with_calls=tools is not None)
    make = _answer_reading(body, prompts.dialect, prompt, tools)
    constraint = await _chat_constraint(body, prompts, prompt)
    tracks: list[Track] = []
    for sequence in _sequences(
        prompt, params, body.n, body.priority, memory, namespace, constraint
    ):
        stream = _stream(tokenizer, sequence, body, shown)
        reader, thoughts = make()
        one_call = not body.parallel_tool_calls
        tracks.append(Track(sequence, stream, len(tracks), prompt, reader, thoughts, one_call))
    return tracks


async def _chat_constraint(
    body: ChatCompletionRequest, prompts: Prompts, prompt: Prompt
) -> Constraint | None:
    """What the answer keeps to, once the model has thought."""
    structure = calls_of(body, prompts.dialect) or await prompts.structure(body)
    budget = body.thinking_token_budget
    if structure is None and budget is None:
        return None
    gate = gate_before_answer(prompts.dialect, prompt.text or "", body.continued)
    if budget is None:
        return await prompts.constraint(structure, gate)
    if prompts.dialect.thinking is None:
        why = "it thinks in a channel" if prompts.dialect.is_harmony else "it has no marker for it"
        raise UnsupportedError(
            f"The end of this model's thinking cannot be forced: {why}.",
            param="thinking_token_budget",
        )
    if gate is None:
        # It does not think in this answer.
        return await prompts.constraint(structure)
    limited = replace(gate, budget=budget, may_end=structure is None)
    return await prompts.constraint(structure, limited)


def _readable_tools(body: ChatCompletionRequest) -> list[dict[str, Any]] | None:
    """The tools whose calls are read; None leaves calls as text."""
    return [tool.model_dump(exclude_none=True) for tool in body.shown_tools] or None


def _answer_reading(
    body: ChatCompletionRequest,
    dialect: Dialect,
    prompt: Prompt,
    tools: list[dict[str, Any]] | None,
) -> Callable[[], tuple[Reader | None, ThoughtCounter | None]]:
    """Makes what reads an answer: nothing where it can hold text only."""
    if tools is None and not dialect.marks_text:
        return lambda: (None, None)
    text = prompt.text or ""
    continued = body.continued
    return lambda: (
        dialect.reader(text, continued=continued, tools=tools),
        dialect.thought_counter(text, continued),
    )


def _sequences(
    prompt: Prompt,
    params: SamplingParams,
    count: int,
    priority: int,
    memory: MemoryRequest | None,
    namespace: Namespace,
    constraint: Constraint | None = None,
) -> Iterator[EngineSequence]:
    """`count` sequences that share one prefill; with a seed each has its own, counted up."""
    if constraint is not None and params.allowed_token_ids:
        raise InvalidRequestError(
            "allowed_token_ids and a grammar exclude each other: together they may allow nothing.",
            param="allowed_token_ids",
        )
    group: int | None = None
    for place in range(count):
        own = params
        if params.seed is not None and place:
            own = replace(params, seed=(params.seed + place) % 2**64)
        sequence = EngineSequence(
            prompt.ids,
            own,
            group=group,
            priority=priority,
            namespace=namespace,
            memory=memory,
            constraint=None if constraint is None else constraint.copy(),
            media=None if prompt.media is None else prompt.media.copy(),
        )
        if count > 1 and group is None:
            # A number that no other request has.
            group = sequence.group = sequence.id
        yield sequence


def _stream(
    tokenizer: Any,
    sequence: EngineSequence,
    body: SamplingFields,
    shown: Mapping[int, str] | None = None,
) -> TextStream:
    return TextStream(
        tokenizer,
        sequence.params,
        stop=body.stop,
        include_stop=body.include_stop_str_in_output,
        skip_special_tokens=body.skip_special_tokens,
        prompt=sequence.prompt,
        shown=shown,
    )
