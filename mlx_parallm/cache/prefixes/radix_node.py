"""A node of the radix tree: one page and what may follow it; and the names of pages."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

Namespace = tuple[Any, ...]
_PLAIN = (str, int, float, bool, bytes, type(None))


class Node:
    """One page of a prefix.

    Attributes:
        tokens: the page's token ids; empty for the root of a namespace.
        page: its number in the pool; -1 for a root.
        snapshot: state of recurrent layers behind this page's last token, or None.
        locks: running rows that stand on it.
        last_used: the cache's clock when it was last matched or inserted.
        alive: whether it is in the tree.
    """

    __slots__ = (
        "_digest", "alive", "children", "last_used", "locks", "namespace", "page", "parent",
        "queued", "serial", "snapshot", "tokens",
    )  # fmt: skip

    def __init__(
        self, parent: Node | None, tokens: tuple[int, ...], page: int, namespace: Namespace
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.page = page
        self.namespace = namespace
        self.children: dict[tuple[int, ...], Node] = {}
        self.snapshot: Any = None
        self.locks = 0
        self.last_used = 0
        self.serial = 0
        self.queued = False
        self.alive = True
        self._digest: bytes | None = None

    @property
    def key(self) -> str:
        """Names the page's contents: a hash of the namespace and all tokens so far.

        Raises:
            TypeError: the namespace is not made of plain values.
        """
        chain: list[Node] = []
        node: Node | None = self
        while node is not None and node._digest is None:
            chain.append(node)
            node = node.parent
        digest = node._digest if node is not None else None
        for node in reversed(chain):
            if digest is None:
                digest = _namespace_digest(node.namespace)
            else:
                digest = _page_digest(digest, node.tokens)
            node._digest = digest
        assert digest is not None
        return digest.hex()


def page_keys(namespace: Namespace, tokens: Sequence[int], page_size: int) -> Iterator[str]:
    """The `Node.key` of each full page of a prompt, whether it is cached or not.

    Raises:
        TypeError: the namespace is not made of plain values.
    """
    digest = _namespace_digest(namespace)
    for start in range(0, len(tokens) - page_size + 1, page_size):
        digest = _page_digest(digest, tokens[start : start + page_size])
        yield digest.hex()


def _namespace_digest(namespace: Namespace) -> bytes:
    _require_plain(namespace)
    return hashlib.blake2b(repr(namespace).encode(), digest_size=20).digest()


def _require_plain(value: Any) -> None:
    # Another object's repr may hold an address, which another run uses for something else.
    if isinstance(value, tuple):
        for item in value:
            _require_plain(item)
    elif type(value) not in _PLAIN:
        raise TypeError(f"a namespace cannot be kept with a {type(value).__name__} in it")


def _page_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    return hashlib.blake2b(parent + array("q", tokens).tobytes(), digest_size=20).digest()
