"""How many files and sockets this process may have open."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LOWERS_THE_LIMIT = "mlx_lm.utils"
_ENOUGH = 65_536
# macOS takes no more than this where its hard limit says "unlimited".
_OPEN_MAX = 10_240


def raise_limit() -> int:
    """Allow as many open files as the system lets this user have, up to 65,536; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_ENOUGH, _OPEN_MAX):
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return _ENOUGH if soft == resource.RLIM_INFINITY else soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            continue
        return wanted
    return soft


def keep_limit_when_importing_mlx_lm() -> None:
    """Importing mlx_lm sets the limit to 2,048 of at most 4,096; make that do nothing.

    It would end connections of a busy server, could not be undone without being root, and
    fails where the limit is lower already (`ulimit -n 1024`).
    """
    if _LOWERS_THE_LIMIT not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds one module as Python would, and has its code run under a guard."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _LOWERS_THE_LIMIT:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _GuardedLoader(spec.loader)
        return spec


class _GuardedLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        original = resource.setrlimit

        def guarded(kind: int, limits: tuple[int, int]) -> None:
            if kind != resource.RLIMIT_NOFILE:
                original(kind, limits)

        resource.setrlimit = guarded
        try:
            self._loader.exec_module(module)
        finally:
            resource.setrlimit = original
