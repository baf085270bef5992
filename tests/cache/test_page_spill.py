"""Between tree, memory and disk: what was evicted, or kept at the end, comes back the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.cache.prefixes.page_file import pack_pages, page_layout, unpack_pages
from mlx_parallm.cache.prefixes.page_spill import PageSpill, model_fingerprint
from mlx_parallm.cache.prefixes.page_store import PageStore
from mlx_parallm.cache.prefixes.pages import PagedKVCache
from mlx_parallm.cache.prefixes.prefix_cache import RadixAttentionCache
from mlx_parallm.models.adapting.layer_spec import LayerSpec

SIZE = 4
LAYERS = [LayerSpec(2, 4, 4), LayerSpec(1, 6, 2)]
MODEL = "0123456789abcdef"


def values(tokens: list[int]) -> Any:
    """K and V that depend on all tokens so far, as a model's do."""
    seen = mx.array([hash(tuple(tokens[: i + 1])) % 10_007 for i in range(len(tokens))])

    def plane(heads: int, dim: int, salt: int) -> mx.array:
        scale = mx.arange(1, heads * dim + 1).reshape(heads, 1, dim)
        return (seen[None, :, None] * scale + salt).astype(mx.float32)

    return [
        (plane(s.kv_heads, s.k_dim, 2 * i), plane(s.kv_heads, s.v_dim, 2 * i + 1))
        for i, s in enumerate(LAYERS)
    ]


class Server:
    """Tree, pages and disk, as an engine has them."""

    def __init__(self, directory: Path, num_pages: int = 64, **options: Any) -> None:
        layers = options.pop("layers", LAYERS)
        self.pages = PagedKVCache(layers, num_pages, page_size=SIZE)
        self.tree = RadixAttentionCache(self.pages.pool, SIZE)
        self.store = PageStore(directory, options.pop("model", MODEL), 1 << 30)
        self.disk = PageSpill(self.tree, self.pages, self.store, **options)

    def keep(
        self, tokens: list[int], snapshot: Any = None, namespace: tuple[Any, ...] = ()
    ) -> None:
        def write(pages: list[int], start: int) -> None:
            stop = start + len(pages) * SIZE
            kv = values(tokens) if self.pages.layers else []
            self.pages.write_all(pages, [(k[:, start:stop], v[:, start:stop]) for k, v in kv])

        make = None if snapshot is None else lambda: snapshot
        self.tree.store(namespace, tokens, write, make)

    def assert_holds(self, tokens: list[int], num_tokens: int) -> None:
        match = self.tree.match((), tokens)
        assert match.num_tokens == num_tokens
        found = self.pages.gather_all(match.pages)
        for one, other in zip(found, values(tokens[:num_tokens]), strict=True):
            for plane, wanted in zip(one, other, strict=True):
                assert mx.array_equal(plane, wanted)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Server] = []

    def make(**options: Any) -> Server:
        servers.append(Server(tmp_path, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.store.close()
        server.tree.check_integrity(idle=True)
        server.pages.check_integrity()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_pages_are_packed_bit_for_bit(dtype: mx.Dtype) -> None:
    cache = PagedKVCache(LAYERS, 8, page_size=SIZE, dtype=dtype)
    pages = cache.allocate_pages(5) or []
    layers = [(k.astype(dtype), v.astype(dtype)) for k, v in values(list(range(20)))]
    cache.write_all(pages, layers)
    records = pack_pages(cache, pages[::-1])
    assert {record.layout for record in records} == {page_layout(cache)}
    assert sum(len(record.data) for record in records) == 5 * cache.page_nbytes
    for one, other in zip(unpack_pages(cache, records[::-1]), layers, strict=True):
        assert all(mx.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert pack_pages(cache, []) == []


def test_evicted_pages_come_back(start: Start) -> None:
    server = start(num_pages=6)
    one, other = list(range(22)), [*range(8), *[9] * 16]
    server.keep(one)
    server.keep(other)  # takes the place of some of the first
    assert server.tree.match((), one).num_tokens < 20
    back = server.disk.restore((), one)
    assert back > 0
    server.assert_holds(one, 20)
    assert server.disk.restore((), one) == 0  # nothing is missing


def test_a_restart_finds_everything_again(start: Start) -> None:
    first = start()
    rng = random.Random(3)
    prompts = [[rng.randrange(2) for _ in range(rng.randrange(4, 40))] for _ in range(12)]
    for tokens in prompts:
        first.keep(tokens)
    assert first.store.stats().written == 0
    first.disk.close()
    assert first.store.stats().files == first.tree.stats().cached_pages
    second = start()
    for tokens in prompts:
        second.disk.restore((), tokens)
        second.assert_holds(tokens, len(tokens) // SIZE * SIZE)
    assert second.tree.stats().cached_pages == first.tree.stats().cached_pages
    written = second.store.stats().written
    second.disk.close()
    assert second.store.stats().written == written  # they are all there already


def test_a_limit_is_kept(start: Start) -> None:
    first = start()
    first.keep([0] * 16)
    first.disk.close()
    second = start()
    assert second.disk.restore((), [0] * 16, limit=15) == 12
    second.assert_holds([0] * 16, 12)


def test_a_damaged_page_ends_what_comes_back(start: Start) -> None:
    first = start()
    first.keep(list(range(20)))
    keys = [node.key for node in first.tree.nodes()]
    first.disk.close()
    (path,) = first.store.directory.rglob(f"{keys[2]}.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    second = start()
    assert second.disk.restore((), list(range(20))) == 8
    second.assert_holds(list(range(20)), 8)


def test_another_model_gets_nothing(start: Start) -> None:
    first = start()
    first.keep([0] * 16)
    first.disk.close()
    assert start(model="fedcba9876543210").disk.restore((), [0] * 16) == 0
    # Even if two models had one fingerprint, the shapes would have to agree.
    assert start(layers=LAYERS[:1]).disk.restore((), [0] * 16) == 0


def test_namespaces_are_kept_apart(start: Start) -> None:
    first = start()
    first.keep([0] * 8, namespace=("adapter", 1))
    first.keep([0] * 8, namespace=(object(),))
    first.disk.close()
    second = start()
    assert second.disk.restore((), [0] * 8) == 0
    assert second.disk.restore((object(),), [0] * 8) == 0
    assert second.disk.restore(("adapter", True), [0] * 8) == 0
    assert second.disk.restore(("adapter", 1), [0] * 8) == 8
    assert second.store.stats().files == 2


def test_no_room_in_memory_brings_back_what_fits(start: Start) -> None:
    first = start()
    first.keep([0] * 32)
    first.disk.close()
    second = start(num_pages=5)
    assert second.disk.restore((), [0] * 32) == 20
    second.assert_holds([0] * 32, 20)


@pytest.mark.parametrize("layers", [LAYERS, []], ids=["hybrid", "recurrent"])
def test_snapshots_come_back(start: Start, layers: list[LayerSpec]) -> None:
    first = start(need_snapshot=True, layers=layers)
    state = [[mx.arange(3), None], [mx.array([0.5], dtype=mx.bfloat16)]]
    first.keep([0] * 8, [[mx.array(8)]])
    first.keep([0] * 16, state)
    first.keep([0] * 24)  # without a snapshot: of no use
    first.disk.close()
    second = start(need_snapshot=True, layers=layers)
    assert second.disk.restore((), [0] * 24) == 16
    match = second.tree.match((), [0] * 24, need_snapshot=True)
    assert match.num_tokens == 16 and second.tree.stats().cached_pages == 4
    assert second.store.stats().hits == 5  # four pages and the snapshot, nothing behind it
    assert mx.array_equal(match.snapshot[0][0], mx.arange(3)) and match.snapshot[0][1] is None
    assert match.snapshot[1][0].dtype == mx.bfloat16
    assert second.disk.restore((), [0] * 24) == 0


def test_a_snapshot_comes_back_to_pages_in_memory(start: Start) -> None:
    first = start(need_snapshot=True)
    first.keep([0] * 8, [mx.array(8)])
    first.disk.close()
    second = start(need_snapshot=True)
    second.keep([0] * 16)
    assert second.tree.match((), [0] * 16, need_snapshot=True).num_tokens == 0
    assert second.disk.restore((), [0] * 16) == 8
    assert second.tree.match((), [0] * 16, need_snapshot=True).num_tokens == 8


def test_a_damaged_snapshot_is_skipped(start: Start) -> None:
    first = start(need_snapshot=True)
    first.keep([0] * 8, [mx.array(8)])
    first.keep([0] * 16, [mx.array(16)])
    node = first.tree.match((), [0] * 16).node
    assert node is not None
    first.disk.close()
    (path,) = first.store.directory.rglob(f"{node.key}-state.safetensors")
    path.write_bytes(b"")
    second = start(need_snapshot=True)
    assert second.disk.restore((), [0] * 16) == 8


def test_what_was_used_last_is_kept_longest(start: Start) -> None:
    server = start()
    for value in range(4):
        server.keep([value] * 16)
    server.tree.match((), [0] * 16)
    server.disk.save_all()
    names = [path.stem for path in server.store._files]  # longest unused first
    nodes = server.tree.match((), [0] * 16)
    assert nodes.node is not None
    path = []
    node = nodes.node
    while node.parent is not None:
        path.append(node.key)
        node = node.parent
    assert names[-4:] == path  # its pages last, and the first of them very last


def test_a_fingerprint_is_of_everything_that_counts() -> None:
    config = {"model_type": "llama", "rope_theta": 1e4}
    weights = [("a", mx.arange(4.0)), ("b", mx.ones((2, 3), dtype=mx.bfloat16))]
    prints = {
        "same": model_fingerprint(config, weights, 16),
        "config": model_fingerprint(config | {"rope_theta": 1e5}, weights, 16),
        "page": model_fingerprint(config, weights, 32),
        "name": model_fingerprint(config, [("c", weights[0][1]), weights[1]], 16),
        "dtype": model_fingerprint(config, [("a", mx.arange(4.0).view(mx.int32)), weights[1]], 16),
        "one weight": model_fingerprint(
            config, [weights[0], ("b", mx.array([[1, 1, 1], [1, 1, 1.01]], mx.bfloat16))], 16
        ),
    }
    assert len(set(prints.values())) == len(prints)
    assert prints["same"] == model_fingerprint(dict(config), weights[::-1], 16)
    assert len(prints["same"]) == 32
