"""What a check found, as a table or as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at; text: what was found, for people.
        passed: None where there is nothing to fail.
        values: the figures behind it.
    """

    name: str
    text: str
    passed: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All findings about one model; `model` describes it, `versions` this installation."""

    model: dict[str, Any]
    versions: dict[str, str]
    findings: list[Finding]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(finding.passed is not False for finding in self.findings)

    @property
    def failures(self) -> list[Finding]:
        """What failed."""
        return [finding for finding in self.findings if finding.passed is False]

    def as_json(self) -> dict[str, Any]:
        """Everything, for machines."""
        return {"passed": self.passed, **asdict(self)}

    def as_table(self) -> str:
        """A line for each finding."""
        marks = {True: "ok", False: "FAILED", None: ""}
        head = [f"{key}: {value}" for key, value in (self.model | self.versions).items()]
        width = max(len(finding.name) for finding in self.findings)
        rows = [f"{f.name:<{width}}  {marks[f.passed]:<6}  {f.text}" for f in self.findings]
        verdict = "passed" if self.passed else f"{len(self.failures)} failed"
        return "\n".join([*head, "", *rows, "", verdict])
