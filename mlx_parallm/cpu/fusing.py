"""Chains of elementwise operations as one kernel, where a C++ compiler is at hand.

On a CPU `mx.compile` writes C++ and calls g++ when a chain is first evaluated. That
takes half a second, so `compile_kernels` does it at load. Without g++ MLX runs the same
operations one by one. With a g++ that does not work MLX raises, from mlx-lm's own
compiled functions too; then compilation is switched off for the process.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

logger = logging.getLogger(__name__)

Samples = tuple[tuple[mx.array, ...], ...]

_KERNELS: list[Fused] = []
_compiled = False


class Fused:
    """A function of arrays of one shape and of scalars, made of fusable operations only.

    No more than eleven operations deep, where an operation on two arrays counts twice,
    or MLX makes several kernels of it. `view` is not fusable.

    Args:
        function: the chain.
        samples: arguments to compile it for. MLX makes a kernel for dense arrays, and one
            for each number of axes that cannot be seen as one; sizes do not matter.
    """

    def __init__(self, function: Callable[..., Any], samples: Samples) -> None:
        self._plain = function
        self._fused = mx.compile(function, shapeless=True)
        self._samples = samples
        _KERNELS.append(self)

    def __call__(self, *arrays: mx.array) -> Any:
        return (self._fused if _compiled else self._plain)(*arrays)

    def compile(self) -> None:
        """Build the kernel. Raises RuntimeError where the compiler fails."""
        for arguments in self._samples:
            mx.eval(self._fused(*arguments))


def fused(*arguments: mx.array, also: Samples = ()) -> Callable[[Callable[..., Any]], Fused]:
    """Decorator: make a Fused of a function that takes arrays like these, or `also` like those."""
    return lambda function: Fused(function, (arguments, *also))


def sample(*shapes: tuple[int, ...]) -> tuple[mx.array, ...]:
    """Arguments for `fused`. Evaluated, since lazy arrays belong to the thread that made them."""
    return tuple(mx.array(np.ones(shape, np.float32)) for shape in shapes)


def is_fusing() -> bool:
    """Whether chains run as one kernel."""
    return _compiled


def compile_kernels() -> bool:
    """Build all kernels and use them from now on. False where that cannot be done."""
    global _compiled
    if _compiled:
        return True
    if shutil.which("g++") is None:  # MLX always calls g++, whatever CXX says
        logger.info("no g++: some operations run unfused")
        return False
    try:
        for kernel in _KERNELS:
            kernel.compile()
    except RuntimeError as error:
        logger.warning("MLX cannot compile kernels, some operations are slower: %s", error)
        mx.disable_compile()
        return False
    _compiled = True
    return True


def stop_fusing() -> None:
    """Run chains operation by operation again."""
    global _compiled
    _compiled = False
