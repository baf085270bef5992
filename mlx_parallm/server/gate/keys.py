"""Secret keys in headers: one rule for all of them, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence


class Keys:
    """The keys that one header may hold.

    Headers are bytes, and clients disagree on how a key that is not ASCII becomes bytes: curl
    sends what the terminal does (UTF-8), HTTP libraries often Latin-1. Both are the same key.

    Args:
        keys: as the operator wrote them.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        forms = {form for key in keys for form in _forms(key)}
        self._digests = [_digest(form) for form in forms]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def match(self, given: bytes) -> bool:
        """Whether the header's value is one of the keys."""
        # Digests have one length, and all of them are compared: the time tells nothing.
        digest = _digest(given)
        matches = [hmac.compare_digest(digest, key) for key in self._digests]
        return any(matches)


def _forms(key: str) -> list[bytes]:
    forms = [key.encode()]
    try:
        forms.append(key.encode("latin-1"))
    except UnicodeEncodeError:
        return forms
    return forms


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
