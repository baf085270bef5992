"""All parameters of a loaded model, so that others can take their place between two forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

Arrays = Mapping[str, mx.array]


class Parameters:
    """The places of a model's parameters. On the thread that owns mlx.

    A graph holds the arrays that it was built with: forwards that were launched do not change.

    Args:
        model: after everything else has changed its modules.
    """

    def __init__(self, model: Any) -> None:
        paths: list[str] = list(dict(tree_flatten(model.parameters())))
        self._places = [(path, *_place(model, path)) for path in paths]

    def now(self) -> dict[str, mx.array]:
        """Those that forwards compute with, by their paths."""
        return {path: home[name] for path, home, name in self._places}

    def put(self, arrays: Arrays) -> None:
        """Let forwards compute with these.

        Args:
            arrays: one for each path.
        """
        for path, home, name in self._places:
            # A module is a dictionary; its __setitem__ is dict's.
            home[name] = arrays[path]


def _place(model: Any, path: str) -> tuple[Any, str | int]:
    """The module, list or dictionary that holds a parameter, and its key there."""
    *way, last = path.split(".")
    home = model
    for part in way:
        home = home[int(part)] if isinstance(home, list | tuple) else home[part]
    return home, int(last) if isinstance(home, list) else last
