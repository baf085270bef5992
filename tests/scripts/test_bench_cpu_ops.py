"""bench_cpu_ops.py: a short run."""

from __future__ import annotations

import pytest

from mlx_parallm.cpu import blas
from tests.scripts.runner import succeed


@pytest.mark.skipif(not blas.preload().own_products, reason="there is nothing to compare with")
def test_products_are_compared_at_all_rows() -> None:
    arguments = ("--only", "products", "--shape", "tiny", "--rounds", "1")
    lines = succeed("bench_cpu_ops.py", *arguments).splitlines()
    first = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert first[2:] == ["1", "2", "4", "8", "16", "32"]
