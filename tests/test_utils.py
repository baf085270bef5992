"""The Python API on a tiny model: batches, streams, templates, errors, and its end."""

from __future__ import annotations

import gc
import inspect
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step as mlx_lm_generate_step

import mlx_parallm
from mlx_parallm import utils
from mlx_parallm.continuous_batching import AsyncContinuousBatchingEngine
from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import InvalidRequestError, ModelLoadError, UnavailableError
from mlx_parallm.generate_settings import GenerateKeywords, GenerateSettings
from mlx_parallm.speculative_decoding import SpeculativeDecodingEngine
from mlx_parallm.utils import (
    batch_generate,
    batch_stream_generate_text,
    close,
    generate,
    generate_step,
    load,
    session_of,
    stream_generate,
)
from tests.conftest import assert_no_leaks, tiny_llama
from tests.engine import mock
from tests.models import checkpoints
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

PROMPTS = [f"question {i}: {'why ' * (i % 9)}?" for i in range(500)]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Any, Any]]:
    """A model as mlx_lm.load would give it, made on this thread."""
    loaded = tiny_llama()
    yield loaded.model, loaded.tokenizer
    close(loaded.model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = tiny_llama(seed=1)
    weights: dict[str, mx.array] = dict(tree_flatten(loaded.model.parameters()))
    return checkpoints.write(tmp_path_factory.mktemp("tiny"), loaded.config, weights)


def engine_of(pair: tuple[Any, Any]) -> Engine:
    return session_of(*pair).engine


def alone(pair: tuple[Any, Any], prompt: str, max_tokens: int) -> str:
    """What mlx_lm says, up to the end token."""
    model, tokenizer = pair

    def run() -> list[int]:
        tokens: list[int] = []
        for token, _ in mlx_lm_generate_step(
            mx.array(tokenizer.encode(prompt)), model, max_tokens=max_tokens
        ):
            if int(token) == mock.EOS:
                break
            tokens.append(int(token))
        return tokens

    tokens = engine_of(pair).call(run).result(PATIENCE_S)
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


# Batches


def test_500_prompts_in_one_call(pair: tuple[Any, Any]) -> None:
    answers = batch_generate(*pair, prompts=PROMPTS, max_tokens=6)
    assert len(answers) == 500
    for index in (0, 7, 123, 499):
        assert answers[index] == alone(pair, PROMPTS[index], 6)
    assert len(set(answers)) > 50
    assert_no_leaks(engine_of(pair))


def test_generate_is_a_batch_of_one(pair: tuple[Any, Any]) -> None:
    assert generate(*pair, PROMPTS[3], max_tokens=9) == alone(pair, PROMPTS[3], 9)
    assert batch_generate(*pair, []) == []


def test_prompts_may_be_tokens_or_messages(pair: tuple[Any, Any]) -> None:
    tokenizer = pair[1]
    text, tokens = "hello", tokenizer.encode("hello")
    messages = [{"role": "user", "content": text}]
    template = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    plain, same, chat, formatted = (
        batch_generate(*pair, [prompt], max_tokens=8, format_prompts=format_prompts)[0]
        for prompt, format_prompts in (
            (text, False),
            (tokens, True),
            (messages, False),
            (text, True),
        )
    )
    assert plain == same == alone(pair, text, 8)
    assert chat == formatted == generate(*pair, template, max_tokens=8)
    assert plain != chat


def test_seeds_count_up_with_the_prompts(pair: tuple[Any, Any]) -> None:
    settings: dict[str, Any] = {"max_tokens": 8, "temp": 1.5, "top_p": 0.98, "ignore_eos": True}
    together = batch_generate(*pair, ["same"] * 4, seed=7, **settings)
    assert len(set(together)) == 4
    assert together == [generate(*pair, "same", seed=7 + i, **settings) for i in range(4)]
    free = batch_generate(*pair, ["same"] * 4, **settings)
    assert len(set(free)) == 4


def test_settings_reach_the_sampler(pair: tuple[Any, Any]) -> None:
    token = pair[1].encode("x")[0]
    assert generate(*pair, "a", max_tokens=5, logit_bias={token: 1000.0}) == "xxxxx"
    once = generate(*pair, "a", max_tokens=5, logit_bias={token: 1000.0}, presence_penalty=5000.0)
    assert once.count("x") == 1
    assert generate(*pair, "a", max_tokens=0) == ""


def test_stop_strings_end_the_sequence(pair: tuple[Any, Any]) -> None:
    token = pair[1].encode("x")[0]
    pieces = list(
        stream_generate(*pair, "a", max_tokens=200, logit_bias={token: 1000.0}, stop="xxx")
    )
    assert "".join(piece.text for piece in pieces) == ""
    assert pieces[-1].finish_reason == "stop"
    assert sum(len(piece.token_ids) for piece in pieces) == 3
    assert_no_leaks(engine_of(pair))
    assert engine_of(pair).stats().aborted > 0


def test_an_answer_never_leaves_the_context(pair: tuple[Any, Any]) -> None:
    prompt = "y" * (mock.CONTEXT - 5)
    pieces = list(stream_generate(*pair, prompt, max_tokens=10_000, ignore_eos=True))
    assert pieces[-1].finish_reason == "length"
    assert pieces[-1].generation_tokens == 5
    assert pieces[-1].prompt_tokens == mock.CONTEXT - 5


# Streams


def test_streams_add_up_to_the_answers(pair: tuple[Any, Any]) -> None:
    prompts = PROMPTS[:20]
    texts, last = [""] * 20, {}
    order = []
    for index, piece in batch_stream_generate_text(*pair, prompts, max_tokens=12, logprobs=1):
        texts[index] += piece.text
        last[index] = piece
        order.append(index)
        assert piece.logprobs is not None and len(piece.logprobs) == len(piece.token_ids)
    assert texts == batch_generate(*pair, prompts, max_tokens=12)
    assert {piece.finish_reason for piece in last.values()} <= {"stop", "length"}
    assert order[:20] != [0] * 20, "all advance together"


def test_closing_an_iterator_early_frees_its_rows(pair: tuple[Any, Any]) -> None:
    engine = engine_of(pair)
    before = engine.stats()
    pieces = batch_stream_generate_text(*pair, PROMPTS[:30], max_tokens=400, ignore_eos=True)
    with closing(pieces):  # type: ignore[type-var]
        for _ in range(5):
            next(pieces)
        assert engine.stats().rows > 0
    assert_no_leaks(engine)
    after = engine.stats()
    assert after.aborted > before.aborted
    assert after.generated_tokens - before.generated_tokens < 30 * 400


def test_an_iterator_that_is_forgotten_frees_its_rows(pair: tuple[Any, Any]) -> None:
    pieces = stream_generate(*pair, "a", max_tokens=400, ignore_eos=True)
    next(pieces)
    del pieces
    gc.collect()
    assert_no_leaks(engine_of(pair))


def test_an_error_in_the_callers_loop_frees_the_rows(pair: tuple[Any, Any]) -> None:
    def consume() -> None:
        for _ in stream_generate(*pair, "a", max_tokens=400, ignore_eos=True):
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        consume()
    assert_no_leaks(engine_of(pair))


def test_callers_on_many_threads_share_one_batch() -> None:
    loaded = tiny_llama(seed=4)  # no engine yet: the first call makes it
    answers: dict[int, list[str]] = {}
    barrier = threading.Barrier(6)

    def work(index: int) -> None:
        barrier.wait()
        answers[index] = batch_generate(
            loaded.model, loaded.tokenizer, PROMPTS[index : index + 3], max_tokens=20
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    wanted = batch_generate(loaded.model, loaded.tokenizer, PROMPTS[:8], max_tokens=20)
    assert all(answers[i] == wanted[i : i + 3] for i in range(6))
    assert session_of(loaded.model, loaded.tokenizer).engine.stats().accepted == 6 * 3 + 8
    close(loaded.model)


def test_verbose_shows_a_progress_bar(
    pair: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    batch_generate(*pair, PROMPTS[:3], max_tokens=2)
    assert capsys.readouterr().err == ""
    batch_generate(*pair, PROMPTS[:3], max_tokens=2, verbose=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "tokens/s" in shown


# What cannot be served


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompts(pair: tuple[Any, Any], prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompt 1 is empty"):
        batch_generate(*pair, ["fine", prompt])
    assert_no_leaks(engine_of(pair))


def test_prompts_beyond_the_context(pair: tuple[Any, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=f"context is {mock.CONTEXT}"):
        generate(*pair, "z" * mock.CONTEXT)


@pytest.mark.parametrize("token", [-1, mock.VOCAB, 1 << 40])
def test_token_ids_out_of_range(pair: tuple[Any, Any], token: int) -> None:
    with pytest.raises(InvalidRequestError, match="token ids"):
        generate(*pair, [5, token])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("seed", 0.5),
        ("stop", 5),
        ("stop", [""]),
        ("logit_bias", {"a": 1.0}),
        ("ignore_eos", "yes"),
        ("use_speculative", 1),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("inf")),
        ("logprobs", 21),
    ],
)
def test_settings_that_make_no_sense(pair: tuple[Any, Any], name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as error:
        generate(*pair, "a", **{name: value})
    assert error.value.param == name


def test_unknown_settings_are_no_secret(pair: tuple[Any, Any]) -> None:
    wrong: Any = {"temprature": 1.0}
    with pytest.raises(TypeError, match="no setting 'temprature'; did you mean 'temperature'"):
        generate(*pair, "a", **wrong)
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        next(stream_generate(*pair, "a", **cast(Any, {"max_new_tokens": 1})))
    with pytest.raises(TypeError, match="'temperature' is given by two names"):
        generate(*pair, "a", temp=1.0, temperature=1.0)
    assert_no_leaks(engine_of(pair))


def test_temperature_has_two_names(pair: tuple[Any, Any]) -> None:
    settings: Any = {"max_tokens": 12, "seed": 3, "ignore_eos": True}
    hot = generate(*pair, "a", temperature=1.5, **settings)
    assert hot == generate(*pair, "a", temp=1.5, **settings)
    assert hot != generate(*pair, "a", **settings)


@pytest.mark.parametrize(
    "function",
    [
        generate,
        generate_step,
        stream_generate,
        batch_generate,
        batch_stream_generate_text,
        AsyncContinuousBatchingEngine.generate,
        SpeculativeDecodingEngine.generate_batch,
    ],
)
def test_every_keyword_is_shown(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for option in fields(GenerateSettings):
        assert shown[option.name].default == option.default
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())


def test_keywords_for_type_checkers_are_the_settings() -> None:
    names = {option.name for option in fields(GenerateSettings)}
    assert set(GenerateKeywords.__annotations__) == names | {"temp"}


def test_generate_step_gives_tokens_and_their_odds(pair: tuple[Any, Any]) -> None:
    ids = pair[1].encode("hello")
    pieces = list(stream_generate(*pair, ids, max_tokens=9, logprobs=0, ignore_eos=True))
    wanted = [(e.token_id, e.logprob) for piece in pieces for e in piece.logprobs or ()]
    steps = list(generate_step(mx.array(ids), pair[0], max_tokens=9, ignore_eos=True))
    assert len(steps) == 9
    assert [token for token, _ in steps] == [token for token, _ in wanted]
    assert [odds for _, odds in steps] == pytest.approx([odds for _, odds in wanted], abs=1e-5)
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        next(generate_step(ids, tiny_llama().model))


def test_missing_models() -> None:
    with pytest.raises(ModelLoadError, match="no such folder"):
        load("./nowhere/at/all")


# Load, close, again


def test_load_from_a_folder(folder: Path) -> None:
    model, tokenizer = load(str(folder), max_batch_size=3, max_model_len=64)
    session = session_of(model, tokenizer)
    assert session.loaded.max_model_len == 64
    assert session.engine.config.max_batch_size == 3
    assert generate(model, tokenizer, "abc", max_tokens=7) == alone((model, tokenizer), "abc", 7)
    close(model)
    assert session.engine.state == "stopped"


def test_a_closed_model_gets_a_new_engine(pair: tuple[Any, Any]) -> None:
    before = generate(*pair, "again", max_tokens=5)
    old = engine_of(pair)
    close(pair[0])
    close(pair[0])  # once is enough, twice does no harm
    with pytest.raises(UnavailableError):
        old.submit([], print)
    assert generate(*pair, "again", max_tokens=5) == before
    assert engine_of(pair) is not old


def test_the_memory_is_free_once_the_model_is(folder: Path) -> None:
    model, tokenizer = load(str(folder))
    generate(model, tokenizer, "abc", max_tokens=3)
    engine = weakref.ref(session_of(model, tokenizer).engine)
    weights = weakref.ref(model)
    close(model)
    del model

    def is_free() -> bool:
        gc.collect()
        return engine() is None and weights() is None

    wait_until(is_free)  # threads that have just ended may hold them for a moment


def test_an_engine_that_stops_answers_the_waiting() -> None:
    loaded = tiny_llama(seed=2)
    session = session_of(loaded.model, loaded.tokenizer)
    pieces = stream_generate(loaded.model, loaded.tokenizer, "a", max_tokens=400, ignore_eos=True)
    next(pieces)
    session.engine.stop()
    with pytest.raises(UnavailableError):
        list(pieces)
    close(loaded.model)


def test_public_names() -> None:
    for name in utils.__all__:
        assert getattr(mlx_parallm, name) is getattr(utils, name)
    for name in mlx_parallm.__all__:
        assert getattr(mlx_parallm, name) is not None
    assert set(utils.__all__) <= set(dir(utils))
    with pytest.raises(AttributeError):
        _ = mlx_parallm.no_such_name
