"""Who sends a request: clients by their API keys, each with its share and its limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlx_parallm.engine.client import Client
from mlx_parallm.options.key_file import KeyEntry, read_key_file
from mlx_parallm.server.gate.allowance import Allowance
from mlx_parallm.server.gate.keys import Keys
from mlx_parallm.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class ApiClient:
    """One client. share: of the batch. allowance: what it may still do."""

    share: Client
    allowance: Allowance

    def spend(self, tokens: int) -> None:
        """Tokens of its prompts and answers."""
        self.allowance.spend(tokens)


class Clients:
    """All that have a key; nobody where there is none: then everybody may enter."""

    def __init__(
        self,
        entries: Iterable[KeyEntry],
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self._clients = [
            (
                Keys([entry.key]),
                ApiClient(
                    Client(entry.name, entry.weight),
                    Allowance(
                        entry.requests_per_minute or requests_per_minute,
                        entry.tokens_per_minute or tokens_per_minute,
                    ),
                ),
            )
            for entry in entries
        ]

    def __bool__(self) -> bool:
        return bool(self._clients)

    def find(self, given: bytes) -> ApiClient | None:
        """Whose key this is."""
        # All are compared: the time tells nothing.
        found = [client for keys, client in self._clients if keys.match(given)]
        return found[0] if found else None


def clients_of(settings: Settings) -> Clients:
    """The keys of --api-key and --api-key-file.

    Raises:
        ValueError: the file cannot be read.
    """
    keys = dict.fromkeys(settings.api_key)
    entries = [KeyEntry(f"key-{place}", key) for place, key in enumerate(keys, start=1)]
    if settings.api_key_file is not None:
        entries += read_key_file(Path(settings.api_key_file).expanduser())
    return Clients(entries, settings.requests_per_minute, settings.tokens_per_minute)
