"""adapter_table.py makes a table of what the tests of adapters note."""

from __future__ import annotations

from pathlib import Path

import adapter_table
from benchlib.noted import lines_of

REPORT = """<testsuites><testsuite><testcase><properties>
<property name="adapter" value="lora|PEFT|plain|PEFT on torch|2.6e-05"/>
<property name="other" value="x"/></properties></testcase><testcase><properties>
<property name="adapter" value="lora|PEFT|packed|PEFT on torch|4.8e-05"/>
<property name="adapter" value="lora|mlx-lm|plain|mlx-lm, unfused|4.8e-06"/>
</properties></testcase></testsuite></testsuites>"""


def test_lines_of_a_kind_are_one(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    lines = lines_of(report, "adapter", adapter_table.COLUMNS)
    assert [line["base"] for line in lines] == ["plain", "packed", "plain"]
    first, second = adapter_table.by_kind(lines)
    assert (first["base"], first["error"]) == ("plain, packed", "4.8e-05")
    assert (second["file"], second["error"]) == ("mlx-lm", "4.8e-06")
