"""Who may change a running server, and sees where its files lie: who has the admin key; without
one, this machine."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from fastapi import Request

from mlx_parallm.errors import AuthenticationError
from mlx_parallm.server.gate.keys import Keys
from mlx_parallm.settings import Settings


def check_admin(request: Request, settings: Settings, *, anywhere: bool = False) -> None:
    """Refuse who may not change the server.

    Args:
        anywhere: without an admin key the call is open to everybody.

    Raises:
        AuthenticationError: no or a wrong key; without one, a client on another machine.
    """
    keys = Keys(settings.admin_key)
    if keys:
        # As it was sent: Starlette reads headers as Latin-1, and back it goes.
        if not keys.match(request.headers.get("x-admin-key", "").encode("latin-1")):
            raise AuthenticationError(
                "This needs the admin key in x-admin-key.", code="invalid_admin_key"
            )
    elif not (anywhere or _is_local(request)):
        raise AuthenticationError(
            "Without --admin-key this is for clients on this machine only.", code="not_local"
        )


# A path from the root or from home, up to its last part; not the rest of a URL.
_FOLDERS = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s'\",:;/]+/)*(?=[^\s'\",:;/]+)")


def without_folders(text: str) -> str:
    """A text without the folders of paths: of /srv/models/tiny only tiny is left."""
    return _FOLDERS.sub("", text)


def shown_card(card: dict[str, Any], request: Request, settings: Settings) -> dict[str, Any]:
    """A model's card for whoever asks: where files lie is for those who may change the server."""
    try:
        check_admin(request, settings)
    except AuthenticationError:
        private = ("path_or_hf_id", "root", "error")
        hidden = {name: without_folders(card[name]) for name in private if card.get(name)}
        return card | hidden
    return card


def _is_local(request: Request) -> bool:
    if request.client is None:
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
