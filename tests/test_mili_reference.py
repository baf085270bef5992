"""The examples of the MILI reference's Python layer, running in MLX."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm import mili
from mlx_parallm.cache.prefixes.page_pool import PagePool
from mlx_parallm.cache.prefixes.pages import KVCacheAllocator, PagedKVCache
from mlx_parallm.cache.prefixes.prefix_cache import RadixAttentionCache
from mlx_parallm.engine import requests
from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.requests import RequestPhase, RequestScheduler
from mlx_parallm.engine.sampling.sampler import Sampler
from mlx_parallm.errors import ContextLengthError, InvalidRequestError, NotFoundError
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.models.qwen3_config import Qwen3Config
from mlx_parallm.models.tokenizer import QwenTokenizer, get_tokenizer
from tests.engine.driver import Driver, greedy


def test_config(tmp_path: Path) -> None:
    config = Qwen3Config(hidden_size=4096, num_hidden_layers=32)
    assert config.head_dim == 128
    assert Qwen3Config.from_dict(config.to_dict()) == config
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "head_dim": 32, "x": 1}))
    loaded = Qwen3Config.from_pretrained(str(tmp_path))
    assert (loaded.hidden_size, loaded.head_dim) == (64, 32)
    with pytest.raises(InvalidRequestError, match="num_key_value_heads"):
        Qwen3Config(num_key_value_heads=7)
    with pytest.raises(InvalidRequestError, match="vocab_size"):
        Qwen3Config(vocab_size=0)


def test_allocator() -> None:
    config = Qwen3Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=8)
    allocator = KVCacheAllocator(config.kv_layers(), 8)
    page = allocator.allocate_page()
    k = mx.random.normal((16, config.num_key_value_heads, config.head_dim))
    allocator.write_pages([page], k, cache_type="k")
    assert mx.array_equal(allocator.gather_pages([page], seq_len=16, cache_type="k"), k)
    assert mx.array_equal(allocator.gather_pages([page], seq_len=5), k[:5])
    assert mx.array_equal(allocator.get_page(page, "k"), k)
    allocator.add_page_reference(page)
    allocator.free_page(page)
    assert mx.array_equal(allocator.get_page(page, "k"), k)
    allocator.free_page(page)
    taken = [allocator.allocate_page() for _ in range(8)]
    assert len(set(taken)) == 8
    with pytest.raises(RuntimeError, match="Insufficient pages"):
        allocator.allocate_page()


def test_allocator_of_a_config() -> None:
    """The document's call: pages for a batch of so many sequences."""
    config = Qwen3Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=8)
    allocator = KVCacheAllocator(config, max_batch_size=64)
    assert allocator.cache.num_pages == 64 * 32768 // 16
    assert allocator.cache.nbytes == 0
    small = KVCacheAllocator(config, max_batch_size=2, max_seq_length=33, dtype=mx.float16)
    assert small.cache.num_pages == 2 * 3
    page = small.allocate_page()
    k = mx.random.normal((10, config.num_key_value_heads, config.head_dim))
    small.write_pages([page], k, cache_type="k")
    found = small.gather_pages([page], seq_len=10, cache_type="k")
    assert mx.array_equal(found, k.astype(mx.float16))
    with pytest.raises(ValueError, match="max_batch_size"):
        KVCacheAllocator(config, max_batch_size=0)


def test_shared_prefixes() -> None:
    layers = Qwen3Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=8).kv_layers()
    pages = PagedKVCache(layers, 8)
    cache = RadixAttentionCache(pages.pool, storage=pages)
    assert isinstance(cache.pool, PagePool)
    prompt = list(range(32))
    k, v = (mx.random.normal((32, 8, 8)) for _ in range(2))
    first = cache.add_request("first", prompt)
    pages.write_pages(first["new_pages"], k, "k")
    pages.write_pages(first["new_pages"], v, "v")
    cache.publish_request("first")
    second = cache.add_request("second", [*prompt[:16], *range(100, 116)])
    assert second["shared_tokens"] == 16
    assert second["shared_pages"] == first["pages"][:1]
    assert mx.array_equal(cache.get_kv_cache("first", "v"), v)
    cache.remove_request("first")
    cache.remove_request("second")
    with pytest.raises(NotFoundError):
        cache.get_kv_cache("first")


def test_tokenizer() -> None:
    tokenizer = QwenTokenizer()
    text = "Hello, world!"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(np.array(tokenizer.encode(text))) == text
    texts = ["Hello", "World, and more of it"]
    batch = tokenizer.batch_encode(texts, max_length=512, return_tensors=True)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert ids.shape == mask.shape
    for row, own, real in zip(tokenizer.encode(texts), ids.tolist(), mask.tolist(), strict=True):
        assert own == row + [0] * (len(own) - len(row))  # type: ignore[operator,arg-type]
        assert real == [1] * len(row) + [0] * (len(own) - len(row))  # type: ignore[arg-type]
    cut = tokenizer.batch_encode(texts, max_length=2, padding=False)["input_ids"]
    assert cut == [row[:2] for row in tokenizer.encode(texts)]  # type: ignore[index]
    with pytest.raises(InvalidRequestError):
        tokenizer.batch_encode(texts, padding=False, return_tensors=True)
    assert get_tokenizer() is get_tokenizer()


def _only(tokens: mx.array) -> int:
    """The token of a batch of one."""
    return int(np.array(tokens).item())


def test_sampler() -> None:
    logits = mx.random.normal((1, 150000), key=mx.random.key(0))
    best = int(np.array(logits).argmax())
    assert Sampler.greedy_sampling(logits).tolist() == [best]
    order = np.argsort(-np.array(logits)[0])
    drawn = {
        _only(Sampler.top_k_top_p_sampling(logits, 0.7, top_k=50, top_p=0.95, seed=seed))
        for seed in range(50)
    }
    assert len(drawn) > 5
    assert drawn <= set(order[:50].tolist())
    assert Sampler.temperature_sampling(logits, temperature=1e-4).tolist() == [best]
    # The document's calls have no seed: each one draws anew; with one they repeat.
    for draw in (Sampler.temperature_sampling, Sampler.top_k_top_p_sampling):
        assert len({_only(draw(logits, 2.0)) for _ in range(20)}) > 3
        assert len({_only(draw(logits, 2.0, seed=7)) for _ in range(5)}) == 1


def test_scheduler_example() -> None:
    assert requests.ContinuousBatchScheduler is mili.ContinuousBatchScheduler is RequestScheduler
    scheduler = RequestScheduler(max_batch_size=64)
    request = scheduler.add_request(prompt_tokens=[1, 2, 3], max_tokens=100, temperature=0.7)
    batch, kind = scheduler.get_next_batch()
    assert (kind, [one.request_id for one in batch]) == ("prefill", [request])
    assert batch[0].phase is RequestPhase.PREFILL
    assert (batch[0].prompt_tokens, batch[0].seq_length) == ([1, 2, 3], 3)
    scheduler.update_request(request, new_token=5, kv_cache_page=7)
    assert scheduler.get_request_status(request) == {
        "status": "processing",
        "tokens_generated": 1,
        "tokens_remaining": 99,
    }
    assert scheduler.get_completed_result(request) is None
    batch, kind = scheduler.get_next_batch()
    assert (kind, batch[0].generated_tokens, batch[0].kv_cache_pages) == ("decode", [5], [7])
    # Its token has not come yet: there is nothing to compute.
    assert scheduler.get_next_batch() == ([], "decode")
    scheduler.cancel_request(request)
    result = scheduler.get_completed_result(request)
    assert result is not None
    assert (result["tokens"], result["finish_reason"]) == ([5], "abort")
    assert scheduler.get_request_status("nobody") == {"status": "not_found"}


def test_scheduler_refuses() -> None:
    scheduler = RequestScheduler(max_seq_length=16)
    with pytest.raises(InvalidRequestError):
        scheduler.add_request([])
    with pytest.raises(InvalidRequestError, match="no setting 'colour'"):
        scheduler.add_request([1], 4, colour="red")
    with pytest.raises(ContextLengthError):
        scheduler.add_request([1] * 10, 7)
    with pytest.raises(NotFoundError):
        scheduler.update_request("nobody", 1)
    request = scheduler.add_request([1], 4)
    with pytest.raises(InvalidRequestError, match="waits for no token"):
        scheduler.update_request(request, 1)
    with pytest.raises(InvalidRequestError):
        RequestScheduler(max_batch_size=0)


def test_results_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "KEPT_RESULTS", 3)
    scheduler = RequestScheduler(max_batch_size=2)
    ids = [scheduler.add_request([1, 2], 1) for _ in range(6)]
    for _ in range(3):
        for one in scheduler.get_next_batch()[0]:
            scheduler.update_request(one.request_id, 9)
    known = [scheduler.get_completed_result(one) is not None for one in ids]
    assert known == [False] * 3 + [True] * 3
    assert len(scheduler._ids) == len(scheduler._pages) == 3


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8)), min_size=1, max_size=12),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
)
def test_every_request_is_answered(
    lengths: list[tuple[int, int]], sizes: tuple[int, int, int]
) -> None:
    scheduler = RequestScheduler(*sizes)
    ids = [scheduler.add_request([1] * prompt, most) for prompt, most in lengths]
    seen: dict[str, list[str]] = {request: [] for request in ids}
    for _ in range(1000):
        batch, kind = scheduler.get_next_batch()
        if not batch:
            break
        assert len(batch) <= (sizes[1] if kind == "prefill" else sizes[2])
        assert len(scheduler.running) <= sizes[0]
        for one in batch:
            seen[one.request_id].append(kind)
            scheduler.update_request(one.request_id, len(one.generated_tokens))
    for request, (_, most) in zip(ids, lengths, strict=True):
        assert seen[request] == ["prefill"] + ["decode"] * (most - 1)
        result = scheduler.get_completed_result(request)
        assert result is not None
        assert (result["tokens"], result["finish_reason"]) == (list(range(most)), "length")


def test_generation_by_hand(
    llama_factory: Callable[..., LoadedModel], make_engine: Callable[..., Engine]
) -> None:
    """The document's pieces together give what the engine gives."""
    loaded = llama_factory()
    prompts = [[3, 4, 5], [9], list(range(30, 50)), [7] * 12]
    scheduler = RequestScheduler(max_batch_size=3)
    ids = [scheduler.add_request(prompt, max_tokens=8) for prompt in prompts]
    while batch := scheduler.get_next_batch()[0]:
        for one in batch:
            logits = loaded.model(mx.array([one.prompt_tokens + one.generated_tokens]))[:, -1]
            token = _only(Sampler.greedy_sampling(logits))
            scheduler.update_request(one.request_id, token)
    rows = [greedy(prompt, 8) for prompt in prompts]
    driver = Driver(make_engine(llama_factory)).run(*rows)
    for request, row in zip(ids, rows, strict=True):
        result = scheduler.get_completed_result(request)
        assert result is not None
        assert result["tokens"] == driver.tokens(row)
