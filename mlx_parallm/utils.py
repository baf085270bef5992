"""The Python API: load a model, generate for one prompt or for hundreds at once.

    from mlx_parallm.utils import load, batch_generate

    model, tokenizer = load("bundled")
    answers = batch_generate(model, tokenizer, prompts=questions, max_tokens=100, temp=0.0)

Everything here runs on the engine that also serves HTTP: one running batch per
model, whichever functions and threads its requests come from.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import mlx.core as mx
import numpy as np
from tqdm import tqdm

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.engine import Engine, EngineConfig, Sink
from mlx_parallm.engine.sequence import FinishReason, Output, Sequence, TokenLogprob
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.generate_settings import GenerateKeywords, GenerateSettings, shows_keywords
from mlx_parallm.memory.attach import ModelMemories
from mlx_parallm.memory.citations import CitedAnswer
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.models.loader import LoadedModel, describe, load_model

log = logging.getLogger(__name__)
_adopting = threading.Lock()

Prompt = str | list[int] | list[dict[str, Any]]


@dataclass(slots=True)
class GenerationResponse:
    """A piece of one answer.

    Attributes:
        text: new text; token_ids: the tokens behind it.
        finish_reason: set on the last piece ("stop" or "length").
        prompt_tokens, generation_tokens: counted so far.
        citations: memories that the answer used, on the last piece, where asked for.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    finish_reason: str | None
    prompt_tokens: int
    generation_tokens: int
    citations: list[dict[str, Any]] | None = None


def load(
    path_or_hf_repo: str = "bundled",
    *,
    dtype: str = "auto",
    max_model_len: int | None = None,
    max_batch_size: int = 32,
    kv_cache_memory: int | None = None,
    draft_model: str | None = None,
    speculative: str | None = None,
    num_draft_tokens: int = 12,
    use_extended_mind: bool = False,
    memory_dir: str | Path | None = None,
    memory_store: str | None = None,
    memory_budget: int | None = None,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Args:
        path_or_hf_repo: "bundled", a folder in Hugging Face format, or a hub id.
        dtype: "auto", "float32", "float16" or "bfloat16".
        max_model_len: a shorter context than the model's own.
        max_batch_size: sequences that compute at once.
        kv_cache_memory: bytes for K and V of running sequences.
        draft_model: a smaller model with the same tokenizer that guesses ahead.
        speculative: "ngram" guesses from the text so far, without a model.
        num_draft_tokens: the most tokens to guess in a step.
        use_extended_mind: give the model `add_memories(tokens)`, whose memories
            `generate` then attends to.
        memory_dir: folder in which memories outlive the process.
        memory_store: another store, such as "redis://localhost".
        memory_budget: bytes of memories held ready at most.

    Returns:
        mlx-lm's model and TokenizerWrapper. The model was made on its engine's
        thread; call MLX on it yourself only through `session_of(...).engine.call`.

    Raises:
        ModelLoadError: what is missing or wrong, in one sentence.
    """
    engine = Engine(
        lambda: load_model(path_or_hf_repo, dtype=dtype, max_model_len=max_model_len),
        EngineConfig(
            max_batch_size=max_batch_size,
            max_queue=1 << 30,
            kv_cache_memory=kv_cache_memory,
            speculative="draft" if draft_model is not None else speculative,
            num_draft_tokens=num_draft_tokens,
        ),
        None if draft_model is None else lambda: load_model(draft_model, dtype=dtype),
    )
    session = Session.start(engine)
    if use_extended_mind:
        session.memories = ModelMemories(engine, memory_dir, memory_store, memory_budget)
        session.memories.bind(session.loaded.model)
    return session.loaded.model, session.loaded.tokenizer


@shows_keywords
def generate(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    *,
    verbose: bool = False,
    **settings: Unpack[GenerateKeywords],
) -> str:
    """The answer to one prompt; settings as in `batch_generate`."""
    return batch_generate(model, tokenizer, [prompt], verbose=verbose, **settings)[0]


@shows_keywords
def stream_generate(
    model: Any, tokenizer: Any, prompt: Prompt, **settings: Unpack[GenerateKeywords]
) -> Iterator[GenerationResponse]:
    """The answer to one prompt, piece by piece; settings as in `batch_generate`."""
    for _, response in batch_stream_generate_text(model, tokenizer, [prompt], **settings):
        yield response


@shows_keywords
def batch_generate(
    model: Any,
    tokenizer: Any,
    prompts: Items[Prompt],
    *,
    verbose: bool = False,
    **settings: Unpack[GenerateKeywords],
) -> list[str]:
    """The answers to many prompts, batched continuously.

    Args:
        prompts: strings, token ids, or chat messages.
        verbose: show a progress bar and the speed.
        max_tokens: new tokens of each answer at most.
        temperature: 0 takes the likeliest token; `temp` is the same.
        top_p, top_k, min_p: leave unlikely tokens out; 1, 0 and 0 are off.
        repetition_penalty, presence_penalty, frequency_penalty: 1, 0 and 0 are off.
        logit_bias: token id -> what is added to its logit.
        seed: prompt i is sampled with seed + i; None draws anew each time.
        stop: a text, or several, that ends an answer and is not part of it.
        min_tokens: the model's end tokens cannot come before.
        ignore_eos: go on through them.
        logprobs: likeliest tokens to report in `stream_generate`'s pieces, 0 to 20.
        format_prompts: put strings through the tokenizer's chat template.
        use_speculative: False never guesses ahead.
        memory: which memories to attend to, see memory/attach.py.

    Raises:
        InvalidRequestError: a prompt is empty or does not fit the context, or a setting
            makes no sense.
        TypeError: there is no such setting.
    """
    texts: list[list[str]] = [[] for _ in prompts]
    tokens, began = 0, time.perf_counter()
    with tqdm(total=len(prompts), disable=not verbose, unit="prompt") as bar:
        for index, piece in batch_stream_generate_text(model, tokenizer, prompts, **settings):
            texts[index].append(piece.text)
            tokens += len(piece.token_ids)
            if piece.finish_reason is not None:
                bar.update()
                bar.set_postfix_str(f"{tokens / (time.perf_counter() - began):.0f} tokens/s")
    return ["".join(parts) for parts in texts]


@shows_keywords
def batch_stream_generate_text(
    model: Any, tokenizer: Any, prompts: Items[Prompt], **settings: Unpack[GenerateKeywords]
) -> Iterator[tuple[int, GenerationResponse]]:
    """Pieces of many answers as they come, each with its prompt's index.

    Settings as in `batch_generate`. Closing the iterator ends what still runs.
    """
    inbox: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    run = session_of(model, tokenizer).begin(prompts, inbox.put, **settings)
    try:
        while run.unfinished:
            yield from run.take(inbox.get())
    finally:
        run.abort()


@shows_keywords
def generate_step(
    prompt: Items[int] | mx.array,
    model: Any,
    tokenizer: Any = None,
    **settings: Unpack[GenerateKeywords],
) -> Iterator[tuple[int, float]]:
    """The tokens of one answer as they come, each with its log-probability.

    Args:
        prompt: token ids, or an array of one axis.
        tokenizer: needed for a model that `load` did not make.
        settings: as in `batch_generate`.

    Raises:
        InvalidRequestError: the tokenizer is needed.
    """
    if tokenizer is None and getattr(model, "_parallm_session", None) is None:
        raise InvalidRequestError(
            "a model without an engine needs its tokenizer", param="tokenizer"
        )
    ids = np.array(prompt).reshape(-1).tolist()
    settings = settings | GenerateKeywords(logprobs=settings.get("logprobs") or 0)
    for piece in stream_generate(model, tokenizer, ids, **settings):
        for entry in piece.logprobs or ():
            yield entry.token_id, entry.logprob


class Session:
    """A loaded model with its running engine."""

    def __init__(self, engine: Engine, loaded: LoadedModel) -> None:
        self.engine = engine
        self.loaded = loaded
        self.memories: ModelMemories | None = None

    @classmethod
    def start(cls, engine: Engine) -> Session:
        """Start the engine, wait for its model, and remember the session."""
        engine.start()
        engine.wait_ready()
        if engine.loaded is None:
            raise RuntimeError("the engine is ready without a model")
        session = cls(engine, engine.loaded)
        engine.loaded.model._parallm_session = session
        atexit.register(session.stop)
        return session

    def stop(self) -> None:
        """Stop the engine, and what makes memories on it."""
        if self.memories is not None:
            self.memories.close()
            self.memories = None
        self.engine.stop()

    def begin(
        self, prompts: Items[Prompt], sink: Sink, **settings: Unpack[GenerateKeywords]
    ) -> Run:
        """Submit prompts; the run turns the sink's outputs into responses."""
        asked = GenerateSettings.of(settings)
        memory = self._memory(asked.memory)
        sequences = [self._sequence(p, i, asked, memory) for i, p in enumerate(prompts)]
        streams = [
            TextStream(self.loaded.tokenizer, s.params, stop=asked.stops, prompt=s.prompt)
            for s in sequences
        ]
        run = Run(self.engine, sequences, streams)
        self.engine.submit(sequences, sink)
        return run

    def _memory(self, asked: Any) -> MemoryRequest | None:
        if self.memories is not None:
            return self.memories.request(asked)
        if asked in (None, False):
            return None
        raise InvalidRequestError("memories need load(..., use_extended_mind=True)", param="memory")

    def _sequence(
        self, prompt: Prompt, index: int, asked: GenerateSettings, memory: MemoryRequest | None
    ) -> Sequence:
        tokens = self._encode(prompt, asked.format_prompts)
        if not tokens:
            raise InvalidRequestError(f"prompt {index} is empty", param="prompts")
        room = self.loaded.max_model_len - len(tokens)
        if room < 1:
            raise InvalidRequestError(
                f"prompt {index} has {len(tokens)} tokens; "
                f"the model's context is {self.loaded.max_model_len}",
                param="prompts",
            )
        params = asked.params(index, room, self.loaded.eos_token_ids)
        return Sequence(tokens, params, memory=memory)

    def _encode(self, prompt: Prompt, format_prompts: bool) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if isinstance(prompt, str) and not format_prompts:
            return list(tokenizer.encode(prompt))
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if prompt and isinstance(prompt[0], dict):
            return list(tokenizer.apply_chat_template(prompt, add_generation_prompt=True))
        tokens = [int(token) for token in prompt]  # type: ignore[arg-type]
        if not all(0 <= token < self.loaded.vocab_size for token in tokens):
            raise InvalidRequestError(
                f"token ids are from 0 to {self.loaded.vocab_size - 1}", param="prompts"
            )
        return tokens


class Run:
    """Prompts that were submitted together, and what came back so far."""

    def __init__(
        self, engine: Engine, sequences: list[Sequence], streams: list[TextStream]
    ) -> None:
        self._engine = engine
        self._sequences = sequences
        self._streams = streams
        self._index = {s.id: i for i, s in enumerate(sequences)}
        self._generated = [0] * len(sequences)
        self._open = set(self._index)
        self._cited = [CitedAnswer(s.memory) for s in sequences]

    @property
    def unfinished(self) -> bool:
        """Whether some answer is not complete."""
        return bool(self._open)

    def take(self, outputs: list[Output]) -> list[tuple[int, GenerationResponse]]:
        """Responses made of a step's outputs.

        Raises:
            ParallmError: the server failed on one of the prompts.
        """
        responses = []
        for output in outputs:
            if output.sequence_id not in self._open:
                continue
            if output.error is not None:
                raise output.error
            responses.append(self._respond(output))
        return responses

    def abort(self) -> None:
        """End what still runs."""
        if self._open:
            self._engine.abort(self._open)
            self._open = set()

    def _respond(self, output: Output) -> tuple[int, GenerationResponse]:
        index = self._index[output.sequence_id]
        delta = self._streams[index].push(output)
        self._generated[index] += len(delta.token_ids)
        self._cited[index].add(delta.token_ids, output.citations)
        if delta.finish_reason is not None:
            self._open.discard(output.sequence_id)
            if output.finish_reason is None:  # a stop string: the engine does not know
                self._engine.abort([output.sequence_id])
        reason = delta.finish_reason.value if delta.finish_reason is not None else None
        return index, GenerationResponse(
            delta.text,
            delta.token_ids,
            delta.logprobs,
            reason,
            len(self._sequences[index].prompt),
            self._generated[index],
            None if reason is None else self._cited[index].shown,
        )


def session_of(model: Any, tokenizer: Any, *, max_batch_size: int | None = None) -> Session:
    """The session of a model; one that mlx-lm loaded gets an engine on first use.

    Args:
        max_batch_size: changes the running engine's, where given.
    """
    with _adopting:
        session: Session | None = getattr(model, "_parallm_session", None)
        if session is None:
            session = Session.start(_adopt(model, tokenizer))
    if max_batch_size is not None:
        session.engine.configure(max_batch_size=max_batch_size).result()
    return session


def close(model: Any) -> None:
    """Stop a model's engine; its memory is free once the model is."""
    session: Session | None = getattr(model, "_parallm_session", None)
    if session is not None:
        session.stop()
        atexit.unregister(session.stop)
        del model._parallm_session


def _adopt(model: Any, tokenizer: Any) -> Engine:
    """An engine for a model that was made elsewhere."""
    mx.eval(model.parameters())  # lazy arrays belong to the thread that made them
    config = dict(vars(model.args)) if hasattr(model, "args") else {}
    loaded = describe(model, tokenizer, config, "adopted", Path())
    return Engine(lambda: loaded, EngineConfig(max_queue=1 << 30))


__all__ = [
    "FinishReason",
    "GenerationResponse",
    "batch_generate",
    "batch_stream_generate_text",
    "close",
    "generate",
    "generate_step",
    "load",
    "stream_generate",
]
