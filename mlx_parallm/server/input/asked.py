"""Asked: something to look at, as a request names it, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from mlx_parallm.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Asked:
    """What pictures and videos have in common.

    Attributes:
        param: its place in the client's body; empty where the messages are the client's own.
    """

    param: str = field(default="", kw_only=True)

    def at(self, param: str) -> Self:
        """The same, with a place unless it has one."""
        return self if self.param else replace(self, param=param)

    def refused(
        self, message: str, kind: type[InvalidRequestError] = InvalidRequestError
    ) -> InvalidRequestError:
        """The error that says why; with the place, since not every envelope has a field for it."""
        return kind(f"Invalid value for '{self.param}': {message}", param=self.param)
