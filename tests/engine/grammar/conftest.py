"""A compiler over a byte tokenizer: token = byte + FIRST_BYTE."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mlx_parallm.engine.grammar import Compiler
from tests.engine import mock


@pytest.fixture(scope="session")
def compiler() -> Iterator[Compiler]:
    made = Compiler(mock.byte_tokenizer(), mock.VOCAB, [mock.EOS])
    yield made
    made.close()
