"""The MemoryManager and the Python API on a real engine with a tiny random model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams, Sequence
from mlx_parallm.errors import InvalidRequestError, NotFoundError, UnsupportedError
from mlx_parallm.memory.backends.faiss_backend import FAISSBackend
from mlx_parallm.memory.backends.sqlite_backend import SQLiteBackend
from mlx_parallm.memory.citations import CitedAnswer, TokenCitation
from mlx_parallm.memory.manager import MemoryManager, MemorySettings
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.submission import Source
from mlx_parallm.memory.text import tokens_of
from mlx_parallm.memory.view import MemoryView
from mlx_parallm.models.loader import BUNDLED, LoadedModel, load_model
from tests.engine import mock
from tests.memory.conftest import make_document
from tests.waiting import PATIENCE_S, wait_until

TEXT = "Anna has a red bicycle and lives by the river."
LOGPROB_TOLERANCE = 1e-4


def start(load: Callable[[], LoadedModel], **config: Any) -> Engine:
    engine = Engine(load, EngineConfig(**config))
    engine.start()
    engine.wait_ready(PATIENCE_S)
    return engine


@pytest.fixture(scope="module")
def engine(llama_factory: Callable[..., LoadedModel]) -> Iterator[Engine]:
    found = start(llama_factory, max_batch_size=8)
    yield found
    found.stop()


@pytest.fixture
def manager(engine: Engine) -> Iterator[MemoryManager]:
    found = MemoryManager(engine, FAISSBackend())
    yield found
    found.close()


def add(manager: MemoryManager, text: str, collection: str = "default", **more: Any) -> Any:
    job = manager.add([Source(text, **more)], collection)
    job.wait(PATIENCE_S)
    return job


Answer = tuple[list[int], list[float]]


def run(engine: Engine, sequences: list[Sequence]) -> list[Answer]:
    """Tokens and their log-probabilities of sequences that run together."""
    inbox: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
    answers: dict[int, Answer] = {s.id: ([], []) for s in sequences}
    left = set(answers)
    engine.submit(sequences, inbox.put)
    while left:
        for output in inbox.get(timeout=PATIENCE_S):
            assert output.error is None, output.error
            tokens, logprobs = answers[output.sequence_id]
            tokens += output.token_ids
            logprobs += [entry.logprob for entry in output.logprobs or ()]
            if output.finish_reason is not None:
                left.discard(output.sequence_id)
    return [answers[s.id] for s in sequences]


def sequence(
    memory: MemoryRequest | None,
    prompt: str = "Who lives by",
    group: int | None = None,
    **params: Any,
) -> Sequence:
    settings = {"max_tokens": 24, "temperature": 0.0, "logprobs": 0, "ignore_eos": True} | params
    tokens = [mock.FIRST_BYTE + byte for byte in prompt.encode()]
    return Sequence(tokens, SamplingParams(**settings), group=group, memory=memory)


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    for (tokens, logprobs), (other, others) in zip(found, expected, strict=True):
        assert tokens == other
        assert np.abs(np.array(logprobs) - others).max() < LOGPROB_TOLERANCE


def some_requests(manager: MemoryManager) -> list[MemoryRequest | None]:
    add(manager, TEXT, "one")
    add(manager, "Something else, " * 30, "two")
    return [
        manager.request(["one"]),
        None,
        manager.request(["two"], MemorySettings(topk=3, citations="span")),
        manager.request(["one", "two"], MemorySettings(position="contiguous", topk=40)),
        manager.request(["one"]),
        manager.request(["two"], MemorySettings(sim_threshold=0.1, layers=(1,), local_offset=7)),
    ]


# The engine


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prefill_chunk": 3},
        {"speculative": "ngram", "num_draft_tokens": 3},
        {"max_batch_size": 3, "prefix_cache_memory": 0},
    ],
)
def test_mixed_batches_equal_each_row_alone(
    llama_factory: Callable[..., LoadedModel], config: dict[str, Any]
) -> None:
    engine = start(llama_factory, **{"max_batch_size": 16, **config})
    manager = MemoryManager(engine, FAISSBackend())
    try:
        requests = some_requests(manager)

        def made() -> list[Sequence]:
            # Repetitive, so that n-grams are guessed and some guesses are right.
            return [
                sequence(memory, "so so so so so " * (1 + place % 3), max_tokens=20 + place)
                for place, memory in enumerate(requests)
            ]

        together = run(engine, made())
        assert_same(together, [run(engine, [one])[0] for one in made()])
        assert together[0] != together[1]
    finally:
        manager.close()
        engine.stop()


def test_preempted_rows_get_their_memories_back(
    llama_factory: Callable[..., LoadedModel],
) -> None:
    roomy = start(llama_factory, max_batch_size=8)
    tight = start(llama_factory, max_batch_size=8, kv_cache_memory=96 * 1024, prefix_cache_memory=0)
    answers = []
    for engine in (roomy, tight):
        manager = MemoryManager(engine, FAISSBackend())
        requests = some_requests(manager)
        answers.append(run(engine, [sequence(memory, max_tokens=60) for memory in requests]))
        manager.close()
    assert tight.stats().preemptions > 0
    roomy.stop()
    tight.stop()
    assert_same(answers[1], answers[0])


def test_forks_share_their_leaders_memories(engine: Engine, manager: MemoryManager) -> None:
    request = some_requests(manager)[3]
    params: dict[str, Any] = {"temperature": 1.0, "max_tokens": 12}
    together = run(
        engine, [sequence(request, group=77, seed=place, **params) for place in range(3)]
    )
    alone = [run(engine, [sequence(request, seed=place, **params)])[0] for place in range(3)]
    assert_same(together, alone)


def test_running_requests_keep_their_version(engine: Engine, manager: MemoryManager) -> None:
    add(manager, TEXT, id="a")
    request = manager.request(["default"])
    before = run(engine, [sequence(request)])
    add(manager, "More of it.", id="b")
    assert_same(run(engine, [sequence(request)]), before)
    newer = manager.request(["default"])
    assert newer.view.size == request.view.size + len("More of it.")
    manager.delete("default")
    assert_same(run(engine, [sequence(request)]), before)
    with pytest.raises(NotFoundError, match="'default'"):
        manager.request(["default"])


def test_sequences_with_other_memories_have_other_namespaces(manager: MemoryManager) -> None:
    add(manager, TEXT)
    first = manager.request(["default"])
    again = manager.request(["default"])
    assert first.namespace == again.namespace and first.view is again.view
    others = [
        MemorySettings(topk=3),
        MemorySettings(sim_threshold=0.5),
        MemorySettings(layers=(0,)),
        MemorySettings(position="contiguous"),
        MemorySettings(local_offset=4),
    ]
    found = {manager.request(["default"], settings).namespace for settings in others}
    add(manager, "more")
    found |= {first.namespace, manager.request(["default"]).namespace}
    assert len(found) == len(others) + 2
    assert sequence(first).namespace == (first.namespace,)
    cites = manager.request(["default"], MemorySettings(citations="span"))
    assert cites.namespace == manager.request(["default"]).namespace


# The budget


def test_views_over_the_budget_are_made_again(engine: Engine) -> None:
    manager = MemoryManager(engine, FAISSBackend())
    names = ["one", "two", "three"]
    for place, name in enumerate(names):
        add(manager, f"{TEXT} {place}", name)
    expected = [run(engine, [sequence(manager.request([name]))])[0] for name in names]
    assert manager.views.loads == 3
    manager.views.budget = 2 * manager.request(["one"]).view.nbytes
    assert_same([run(engine, [sequence(manager.request([n]))])[0] for n in names * 2], expected * 2)
    manager.views.clear()
    assert manager.views.nbytes == 0
    loads = manager.views.loads
    for name in names:
        manager.request([name])
    assert manager.views.nbytes <= manager.views.budget
    manager.request(["three"])
    assert manager.views.loads == loads + 3  # it was held
    manager.request(["one"])
    assert manager.views.loads == loads + 4  # it was the least recently used one
    manager.close()


# What is refused


def test_memories_of_another_model_are_refused(
    engine: Engine, llama_factory: Callable[..., LoadedModel], tmp_path: Path
) -> None:
    manager = MemoryManager(engine, SQLiteBackend(tmp_path))
    add(manager, TEXT)
    manager.close()
    other = start(lambda: llama_factory(1))
    manager = MemoryManager(other, SQLiteBackend(tmp_path))
    with pytest.raises(InvalidRequestError, match="another model") as refused:
        manager.request(["default"])
    assert refused.value.code == "memory_mismatch"
    manager.close()
    other.stop()
    manager = MemoryManager(engine, SQLiteBackend(tmp_path))
    assert manager.request(["default"]).view.size == len(TEXT)
    manager.close()


def test_models_without_attention_are_refused() -> None:
    engine = start(lambda: mock.loaded(mock.MockModel(), mock.byte_tokenizer()))
    manager = MemoryManager(engine, FAISSBackend())
    with pytest.raises(UnsupportedError):
        manager.add([Source(TEXT)])
    manager.close()
    engine.stop()


def test_a_job_that_fails_says_why(manager: MemoryManager, monkeypatch: Any) -> None:
    def broken(*_: Any) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(manager.backend, "put", broken)
    job = manager.add([Source(TEXT)])
    with pytest.raises(Exception, match="failed on these memories"):
        job.wait(PATIENCE_S)
    assert job.status == "failed" and manager.collections() == []
    monkeypatch.undo()
    add(manager, TEXT)


def test_a_job_ends_with_its_manager(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = MemoryManager(engine, FAISSBackend())
    closes, remember = threading.Event(), manager.jobs._remember
    monkeypatch.setattr(
        manager.jobs, "_remember", lambda *args: closes.wait(PATIENCE_S) and remember(*args)
    )
    job = manager.add([Source(TEXT * 20) for _ in range(5)])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(manager.close)
        wait_until(lambda: manager.jobs._stopping)
        closes.set()
    assert job.ended.wait(PATIENCE_S) and job.status == "cancelled"


# Text


def test_special_tokens_are_run_but_not_kept() -> None:
    tokenizer = mock.byte_tokenizer()
    tokens = tokens_of(tokenizer, [mock.USER, *tokenizer.encode("ab"), mock.EOS])
    assert tokens.kept.tolist() == [False, True, True, False]
    kept = [tokens.text[a:b] for a, b in tokens.offsets[tokens.kept]]
    assert kept == ["a", "b"]
    with pytest.raises(InvalidRequestError, match="nothing to remember"):
        tokens_of(tokenizer, [mock.EOS])
    with pytest.raises(InvalidRequestError, match="nothing to remember"):
        tokens_of(tokenizer, "")


def test_offsets_point_into_the_text() -> None:
    text = "Grüße an Žofie: 你好"
    tokens = tokens_of(mock.byte_tokenizer(), text)
    assert tokens.text == text and tokens.offsets[0].tolist() == [0, 1]
    covered = {place for a, b in tokens.offsets.tolist() for place in range(a, b)}
    assert covered == set(range(len(text)))


# Citations


def test_neighbours_become_one_span() -> None:
    documents = (make_document("a", size=10), make_document("b", size=10))
    view = MemoryView(("k",), "zero", documents)
    answer = CitedAnswer(MemoryRequest(view, citations="span"))
    used = [((3, 0.2), (4, 0.25), (9, 0.05)), ((10, 0.6), (4, 0.25))]
    answer.add([1, 2], [TokenCitation(memories) for memories in used])
    shown = [(e["document_id"], e["start"], e["end"], e["weight"]) for e in answer.shown or ()]
    # The last one counts for too little beside the others.
    assert shown == [("a", 3, 5, 0.35), ("b", 0, 1, 0.3)]
    assert CitedAnswer(MemoryRequest(view)).shown is None


# Python


def test_a_models_own_settings_are_the_defaults_of_position_zero() -> None:
    engine = Engine(lambda: load_model(BUNDLED), EngineConfig())
    engine.start()
    engine.wait_ready(PATIENCE_S)
    try:
        manager = MemoryManager(engine, FAISSBackend())
        add(manager, TEXT, "one")
        assert engine.loaded is not None
        own = engine.loaded.config["extended_mind"]
        zero = manager.request(["one"])
        assert zero.layers == frozenset(own["layers"])
        assert zero.local_offset == own["local_offset"]
        assert not zero.uses(0) and zero.uses(own["layers"][0])
        asked = manager.request(["one"], MemorySettings(layers=(0, 1), local_offset=0))
        assert (asked.layers, asked.local_offset) == (frozenset({0, 1}), 0)
        contiguous = manager.request(["one"], MemorySettings(position="contiguous"))
        assert (contiguous.layers, contiguous.local_offset) == (None, 0)
    finally:
        engine.stop()


def test_the_python_api(tmp_path: Path, capsys: Any) -> None:
    from mlx_parallm.utils import close, generate, load, stream_generate

    model, tokenizer = load("bundled", use_extended_mind=True, memory_dir=tmp_path)
    try:
        model.set_model_id("my-model")
        prompt = "Anna has a"
        settings: Any = {"max_tokens": 12, "temp": 0.0}
        before = generate(model, tokenizer, prompt, **settings)
        stored = model.add_memories(mx.array(tokenizer.encode(TEXT)), verbose=True)
        assert (stored.collection, stored.text) == ("my-model", TEXT)
        assert stored.num_memories == len(stored.offsets) > 0
        assert model.add_memories(tokenizer.encode(TEXT)).uid == stored.uid  # the same again
        assert "memories: 100%" in capsys.readouterr().err
        assert [c.name for c in model.memories.manager.collections()] == ["my-model"]
        with_memory = {"position": "contiguous", "topk": 1000, "citations": "span"}
        found = list(stream_generate(model, tokenizer, prompt, memory=with_memory, **settings))
        whole = generate(model, tokenizer, TEXT + prompt, memory=False, **settings)
        assert "".join(piece.text for piece in found) == whole
        (cited,) = [piece.citations for piece in found if piece.citations is not None]
        assert cited[0]["collection"] == "my-model"
        assert generate(model, tokenizer, prompt, memory=False, **settings) == before
        default = generate(model, tokenizer, prompt, **settings)
        assert default == generate(model, tokenizer, prompt, memory="my-model", **settings)
        with pytest.raises(NotFoundError, match="'nope'"):
            generate(model, tokenizer, prompt, memory="nope", **settings)
        with pytest.raises(InvalidRequestError, match="setting"):
            generate(model, tokenizer, prompt, memory={"depth": 3}, **settings)
    finally:
        close(model)


def test_the_documented_names() -> None:
    from mlx_parallm.memory import FAISSBackend as faiss
    from mlx_parallm.memory import MemoryBackend
    from mlx_parallm.memory import MemoryManager as manager

    assert issubclass(faiss, MemoryBackend) and manager is MemoryManager and faiss is FAISSBackend


def test_memories_must_be_asked_for_at_load(llama_factory: Callable[..., LoadedModel]) -> None:
    from mlx_parallm.utils import Session

    session = Session.start(Engine(llama_factory, EngineConfig()))
    try:
        with pytest.raises(InvalidRequestError, match="use_extended_mind"):
            session.begin(["a"], lambda _: None, memory="default")
    finally:
        session.stop()
