"""gguf_table.py makes a table of what the tests of GGUF files note."""

from __future__ import annotations

import gguf_table


def test_positions_of_a_file_are_added_up() -> None:
    values = (
        ("SmolLM2", "Q4_1", "25", "25", "3.1e-03"),
        ("SmolLM2", "Q4_1", "25", "24", "2.9e-02"),
        ("SmolLM2", "F32", "24", "24", "1.0e-04"),
    )
    lines = [dict(zip(gguf_table.COLUMNS, line, strict=True)) for line in values]
    first, second = gguf_table.by_model(lines)
    assert list(first.values()) == ["SmolLM2", "Q4_1", "50", "49", "2.9e-02"]
    assert second["error"] == "1.0e-04"
