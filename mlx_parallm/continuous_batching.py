"""Batches of prompts from asyncio, on the one engine.

engine = AsyncContinuousBatchingEngine(model, tokenizer, BatchConfig(max_batch_size=8))
results = await engine.generate_batch(prompts)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Unpack

from mlx_parallm.engine.engine import EngineStats
from mlx_parallm.generate_settings import GenerateKeywords, canonical, shows_keywords
from mlx_parallm.utils import GenerationResponse, Prompt, Session, session_of


@dataclass(frozen=True)
class BatchConfig:
    """How requests are put together.

    Attributes:
        max_batch_size: sequences that compute at once.
        timeout_ms: how long a lone request waits for others; 0 starts it at once,
            and later ones join the running batch either way.
        max_tokens: default length of an answer.
        temperature, top_p: defaults of sampling.
    """

    max_batch_size: int = 8
    timeout_ms: float = 0.0
    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0


class AsyncContinuousBatchingEngine:
    """Answers prompts concurrently; all of them share one running batch.

    Args:
        model, tokenizer: as `mlx_parallm.utils.load` returns them.
        config: batch bounds and sampling defaults.
    """

    def __init__(self, model: Any, tokenizer: Any, config: BatchConfig | None = None) -> None:
        self.config = config or BatchConfig()
        self._session: Session = session_of(
            model, tokenizer, max_batch_size=self.config.max_batch_size
        )

    @shows_keywords
    async def generate(self, prompt: Prompt, **settings: Unpack[GenerateKeywords]) -> str:
        """The answer to one prompt; settings as in `mlx_parallm.utils.generate`."""
        return (await self.generate_batch([prompt], **settings))[0]

    @shows_keywords
    async def generate_batch(
        self, prompts: Items[Prompt], **settings: Unpack[GenerateKeywords]
    ) -> list[str]:
        """The answers to all prompts, in their order."""
        if self.config.timeout_ms:
            await asyncio.sleep(self.config.timeout_ms / 1000)
        texts = [""] * len(prompts)
        async for index, response in self.stream_batch(prompts, **settings):
            texts[index] += response.text
        return texts

    @shows_keywords
    async def stream_batch(
        self, prompts: Items[Prompt], **settings: Unpack[GenerateKeywords]
    ) -> AsyncIterator[tuple[int, GenerationResponse]]:
        """Pieces of all answers as they come, each with its prompt's index."""
        asked = {
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
            "top_p": self.config.top_p,
        } | canonical(settings)
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[list[Any]] = asyncio.Queue()

        def sink(outputs: list[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, outputs)

        run = self._session.begin(prompts, sink, **asked)
        try:
            while run.unfinished:
                for index, response in run.take(await inbox.get()):
                    yield index, response
        finally:
            run.abort()

    def get_stats(self) -> EngineStats:
        """The engine's counters."""
        return self._session.engine.stats()
