"""Both ways in which the replacements run, and a folder for what blas.py keeps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_parallm.cpu import attention as cpu_attention
from mlx_parallm.cpu import fusing


@pytest.fixture(params=["fused", "plain"])
def each_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with fused kernels, and as where there is no compiler."""
    if request.param == "fused" and not fusing.compile_kernels():
        pytest.skip("no C++ compiler")
    if request.param == "plain":
        fusing.stop_fusing()
    yield
    fusing.stop_fusing()


@pytest.fixture(scope="module")
def few_scores_too() -> Iterator[None]:
    """Small examples would be left to mx.fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_FEW_SCORES", 0)
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")
