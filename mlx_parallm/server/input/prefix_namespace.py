"""Which cached prefixes a request may find: those of its own salt and, with isolation, of its key.

How many prompt tokens were cached, and how fast a prompt was computed, tells a client what other
clients have sent. A namespace of their own hides it.
"""

from __future__ import annotations

import hashlib

from fastapi import Request

from mlx_parallm.server.state import ServerState

Namespace = tuple[object, ...]


def prefix_namespace(request: Request, state: ServerState, cache_salt: str | None) -> Namespace:
    """The part of the prefix cache's key that keeps clients apart; empty where all share.

    Args:
        cache_salt: the request's field, with vLLM's meaning.
    """
    namespace: Namespace = ()
    if state.settings.isolates_keys:
        namespace += (("key", _digest(_key_of(request))),)
    if cache_salt is not None:
        namespace += (("salt", _digest(cache_salt)),)
    return namespace


def _key_of(request: Request) -> str:
    """The key that the gate has let in."""
    bearer = request.headers.get("authorization", "").partition(" ")[2].strip()
    return bearer or request.headers.get("x-api-key", "").strip()


def _digest(secret: str) -> str:
    return hashlib.blake2b(secret.encode(), digest_size=20).hexdigest()
