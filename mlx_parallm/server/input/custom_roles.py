"""Roles of messages that only some chat templates know, such as "critic" or "context"."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.input.chat_template import Conversation, render

# Every template is expected to know these, or to refuse them itself.
KNOWN_ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})


def refuse_lost_roles(tokenizer: Any, conversation: Conversation) -> None:
    """Refuse roles that the template does not take.

    A template takes a role where it writes the message, and not as one of any other unknown role.

    Args:
        tokenizer: an mlx-lm TokenizerWrapper.

    Raises:
        InvalidRequestError: a message's role would be lost, or the message itself.
    """
    for place, message in enumerate(conversation.messages):
        role = message["role"]
        if role not in KNOWN_ROLES and not _is_taken(tokenizer, conversation, place):
            raise InvalidRequestError(
                f"The chat template does not know the role {role!r}.",
                param=f"messages.{place}.role",
            )


def _is_taken(tokenizer: Any, conversation: Conversation, place: int) -> bool:
    # Letters only, so that no filter of the template changes them.
    mark = f"m{secrets.token_hex(8)}x"
    marked = _with(conversation, place, content=mark)
    text = render(tokenizer, marked)
    if mark not in text:
        return False
    try:
        return render(tokenizer, _with(marked, place, role=f"r{mark}")) != text
    except InvalidRequestError:
        return True


def _with(conversation: Conversation, place: int, **changes: str) -> Conversation:
    messages = list(conversation.messages)
    messages[place] = {**messages[place], **changes}
    return replace(conversation, messages=messages)
