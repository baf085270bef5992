"""A real server on a real port, around an engine whose answers are known.

ParrotEngine says what the last user said, token by token. So the text of a request is its
answer: calls of tools, stop strings and broken characters are tested by sending them.
"""

from __future__ import annotations

import json
import math
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from huggingface_hub import constants
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_parallm.engine.engine import Engine, EngineConfig, EngineStats
from mlx_parallm.engine.sequence import FinishReason, Output, Sequence, TokenLogprob
from mlx_parallm.errors import ModelLoadError, QueueFullError, UnavailableError
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.gate.limits import ConnectionLimits
from mlx_parallm.server.listener import listen
from mlx_parallm.server.main import create_app
from mlx_parallm.server.runner import Runner
from mlx_parallm.server.state import ServerState
from mlx_parallm.server.tls import tls_context
from mlx_parallm.settings import Settings
from tests.models.tiny_hub import TinyHub
from tests.waiting import PATIENCE_S
from tests.waiting import wait_until as wait_until

END, USER, ASSISTANT = 0, 1, 2
FIRST_BYTE = 3
VOCAB = FIRST_BYTE + 256
CONTEXT = 512
# Whoever says this makes its sequence fail.
CURSE = "the engine must fail on this"

_TEMPLATE = (
    "{% if tools %}[{% for t in tools %}{{ t.function.name }} {% endfor %}]{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'forbidden' or m.content == 'forbidden' %}"
    "{{ raise_exception('this word is forbidden') }}{% endif %}"
    "{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ suffix or '' }}"
)


def byte_symbols() -> list[str]:
    """GPT-2's stand-in for each byte: itself where it can be seen, else the next free letter."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]


def make_tokenizer() -> TokenizerWrapper:
    """One token a byte, a chat template, and Hermes-style tool calls."""
    names = ["<|end|>", "<|user|>", "<|assistant|>"]
    vocab = {name: place for place, name in enumerate(names)}
    vocab |= {symbol: FIRST_BYTE + byte for byte, symbol in enumerate(byte_symbols())}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=names[END], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = _TEMPLATE
    return TokenizerWrapper(
        tokenizer,
        eos_token_ids=[END],
        tool_call_start=json_tools.tool_call_start,
        tool_call_end=json_tools.tool_call_end,
        tool_parser=json_tools.parse_tool_call,
    )


def make_loaded() -> LoadedModel:
    """A LoadedModel without a model."""
    return LoadedModel(
        model=None,
        tokenizer=make_tokenizer(),
        config={},
        path="parrot",
        folder=Path(),
        eos_token_ids=frozenset({END}),
        max_model_len=CONTEXT,
        vocab_size=VOCAB,
        dtype="float32",
        num_parameters=1,
        nbytes=4,
        quantization=None,
    )


@dataclass
class _Live:
    sequence: Sequence
    sink: Callable[[list[Output]], None]
    answer: list[int]
    said: int = 0


@dataclass
class ParrotEngine:
    """The Engine's interface; every step takes `step_s` and gives each sequence a token.

    With ignore_eos the answer is repeated up to max_tokens. A token's logprob is
    -(seed % 7 + 1) / 10, so that answers with other seeds have other scores.
    """

    step_s: float = 0.0005
    load_s: float = 0.0
    may_load: threading.Event | None = None
    load_error: str | None = None
    room: int = 1024
    state: str = "loading"
    reason: str | None = "the model is loading"
    stalled: str | None = None
    loaded: LoadedModel | None = None
    config: EngineConfig = field(default_factory=EngineConfig)
    groups: list[int] = field(default_factory=list)
    submitted: list[Sequence] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    live: dict[int, _Live] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _steps_left: float = math.inf

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def wait_ready(self, timeout: float | None = None) -> None:
        if self.load_error is not None:
            raise ModelLoadError(self.load_error)
        if self.state == "loading":
            raise TimeoutError

    def submit(self, sequences: list[Sequence], sink: Callable[[list[Output]], None]) -> None:
        with self._lock:
            if self.state != "ready":
                raise UnavailableError(f"The server cannot take requests now: {self.reason}")
            if len(self.live) + len(sequences) > self.room:
                raise QueueFullError("there is no room now")
            self.groups.append(len(sequences))
            self.submitted += sequences
            for sequence in sequences:
                self.live[sequence.id] = _Live(sequence, sink, _answer(sequence.prompt))

    def abort(self, ids: list[int]) -> None:
        with self._lock:
            for id_ in ids:
                live = self.live.pop(id_, None)
                if live is not None:
                    self.aborted.append(id_)
                    live.sink([Output(id_, finish_reason=FinishReason.ABORT)])

    @contextmanager
    def held(self, steps: int = 0) -> Iterator[None]:
        """Takes so many steps and no more meanwhile: what is live stays so, or is aborted."""
        with self._lock:
            self._steps_left = steps
        try:
            yield
        finally:
            self.go_on()

    def go_on(self) -> None:
        """Not held any more."""
        with self._lock:
            self._steps_left = math.inf

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.live))

    def drain(self) -> None:
        if self.state == "ready":
            self.state, self.reason = "draining", "the server is shutting down"

    def stop(self, timeout: float = 10) -> None:
        self.state, self.reason = "stopped", "the server has stopped"

    def _run(self) -> None:
        time.sleep(self.load_s)
        if self.may_load is not None:
            self.may_load.wait()
        if self.load_error is not None:
            self.state, self.reason = "stopped", self.load_error
            return
        self.loaded = make_loaded()
        self.state, self.reason = "ready", None
        while self.state != "stopped":
            time.sleep(self.step_s)
            with self._lock:
                if self.live and self._steps_left > 0:
                    self._steps_left -= 1
                    self._step()

    def _step(self) -> None:
        outbox: dict[int, tuple[Callable[[list[Output]], None], list[Output]]] = {}
        for live in list(self.live.values()):
            output = self._next(live)
            if output.finish_reason is not None:
                del self.live[live.sequence.id]
            outbox.setdefault(id(live.sink), (live.sink, []))[1].append(output)
        for sink, outputs in outbox.values():
            sink(outputs)

    def _next(self, live: _Live) -> Output:
        sequence, params = live.sequence, live.sequence.params
        if bytes(i - FIRST_BYTE for i in live.answer).decode(errors="replace") == CURSE:
            error = RuntimeError("secret: a matrix broke")
            return Output(sequence.id, finish_reason=FinishReason.ERROR, error=error)
        output = Output(sequence.id, cached_tokens=min(2, len(sequence.prompt)))
        if live.said == 0 and params.prompt_logprobs is not None:
            scores = [_score(sequence, i, params.prompt_logprobs) for i in sequence.prompt]
            output.prompt_logprobs = [None, *scores[1:]]
        if params.max_tokens == 0:
            return replace(output, finish_reason=FinishReason.LENGTH)
        at_end = live.said >= len(live.answer)
        token = END if at_end else live.answer[live.said]
        if at_end and params.ignore_eos:
            token = live.answer[live.said % len(live.answer)]
        live.said += 1
        output.token_ids = [token]
        if params.logprobs is not None:
            output.logprobs = [_score(sequence, token, params.logprobs)]
        if token in params.end_token_ids:
            output.finish_reason = FinishReason.STOP
        elif live.said == params.max_tokens:
            output.finish_reason = FinishReason.LENGTH
        return output


def _answer(prompt: list[int]) -> list[int]:
    """What comes after the last user marker, without special tokens."""
    start = max((at + 1 for at, token in enumerate(prompt) if token == USER), default=0)
    return [token for token in prompt[start:] if token >= FIRST_BYTE]


def _score(sequence: Sequence, token: int, top: int) -> TokenLogprob:
    logprob = -((sequence.params.seed or 0) % 7 + 1) / 10
    others = [(token + place) % VOCAB for place in range(top)]
    return TokenLogprob(
        token, logprob, tuple((other, logprob - place) for place, other in enumerate(others))
    )


class Served:
    """A running server and ways to talk to it."""

    def __init__(
        self,
        app: FastAPI,
        engine: Any,
        drain_s: float,
        limits: ConnectionLimits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.app = app
        self.engine = engine
        self.runner = Runner(app, drain_s=drain_s, answer_s=20, limits=limits, tls=tls)
        self._socket = listen("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def state(self) -> ServerState:
        """What the routes share."""
        return cast(ServerState, self.app.state.server)

    def wait_ready(self) -> None:
        """Until /health is 200."""
        wait_until(lambda: self.http.get("/health").status_code == 200)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """POST JSON."""
        return self.http.post(path, json=body)

    def ok(self, path: str, **body: Any) -> Any:
        """POST JSON, expect a 200, give its JSON."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """POST JSON with stream, expect a whole stream, give its events without [DONE]."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as response:
            text = response.read().decode()
        assert response.status_code == 200, text
        return parse_events(text)

    def stop(self) -> None:
        """As Ctrl-C does."""
        self.runner.should_exit = True

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        self.http.close()

    def _serve(self) -> None:
        with self._socket:
            self.runner.run(sockets=[self._socket])


def parse_events(text: str, done: bool = True) -> list[dict[str, Any]]:
    """The events of a stream; every line must be one, since clients choke on comments."""
    parts = text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), text
    if done:
        assert parts.pop() == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def until_idle(settings: Settings, engine: Engine) -> Iterator[Served]:
    """For fixtures: a server on a real engine, in which nothing is left at the end (law 4)."""
    served = Served(create_app(settings, engine), engine, 0.5)
    served.wait_ready()
    yield served
    wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()


@pytest.fixture(scope="session")
def helpers() -> Any:
    """This module, for tests that need its functions."""
    import sys

    return sys.modules[__name__]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TinyHub]:
    """A hub with one model, which this process asks for models."""
    weights = random.Random(5).randbytes(3_000_000)
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}"}
    hub = TinyHub(files | {"model.safetensors": weights})
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub
    hub.close()


ServeFactory = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[ServeFactory]:
    """serve(engine=None, ready=True, drain_s=..., limits=..., **settings) starts a server."""
    running: list[Served] = []

    def start(
        engine: Any = None,
        *,
        ready: bool = True,
        drain_s: float = 0.5,
        limits: ConnectionLimits | None = None,
        **settings: Any,
    ) -> Served:
        engine = engine or ParrotEngine()
        options = {"served_model_name": ("parrot",), "log_level": "warning"} | settings
        given = Settings(**options)
        app = create_app(given, cast(Engine, engine))
        served = Served(app, engine, drain_s, limits, tls_context(given))
        running.append(served)
        if ready:
            served.wait_ready()
        return served

    yield start
    for served in running:
        served.stop()
    for served in running:
        served.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """One server with a ParrotEngine for all tests of a module."""
    engine = ParrotEngine()
    app = create_app(Settings(served_model_name=("parrot", "org/parrot-2")), cast(Engine, engine))
    served = Served(app, engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()
