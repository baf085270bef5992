"""What a page of Markdown tells its reader to type, and what it points to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# seeds.md says what other documents call things; tests/test_seeds.py holds it.
_DOCS = (page for page in (ROOT / "docs").glob("*.md") if page.name != "seeds.md")
PAGES = (ROOT / "README.md", *sorted(_DOCS))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
_REMARK = re.compile(r"\s+# [^'\"\n]*$")
_PROGRAM = re.compile(
    r"(\./)?scripts/[\w.]+( |$)|mlx_parallm(_\w+)?( |$)|(curl|until|lm_eval|pip|python|source) "
)
_UMBRELLA = re.compile(r"mlx_parallm \w+")


@dataclass(frozen=True)
class Snippet:
    """Something to run: a command, or a program in Python.

    Attributes:
        page: its file's name; line: where it begins.
        language: "bash" or "python".
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} {self.text.splitlines()[0][:70]}"


def snippets(path: Path) -> Iterator[Snippet]:
    """All of a page in its order: Python blocks, and the commands of the others and of the text.

    Raises:
        ValueError: a block of another kind.
    """
    page = path.read_text(encoding="utf8")
    found = [(match.start(), "block", match) for match in _FENCE.finditer(page)]
    found += [(match.start(), "span", match) for match in _SPAN.finditer(_without_blocks(page))]
    for start, kind, match in sorted(found, key=lambda item: item[0]):
        line = page.count("\n", 0, start) + 1
        if kind == "span":
            if is_command(match[1]):
                yield Snippet(path.name, line, "bash", match[1])
        elif match[1] == "python":
            yield Snippet(path.name, line, "python", match[2])
        elif match[1] == "bash":
            yield from (Snippet(path.name, line, "bash", text) for text in commands(match[2]))
        elif match[1] == "toml":
            yield Snippet(path.name, line, "toml", match[2])
        else:
            kinds = "bash, python or toml"
            raise ValueError(f"{path.name}:{line}: blocks are {kinds}, not {match[1]!r}")


def commands(script: str) -> Iterator[str]:
    """The commands of a shell script, each with its further lines and without its remark.

    Raises:
        ValueError: the last one does not end.
    """
    text = ""
    for line in script.splitlines():
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # an open quote
            text += "\n"
            continue
        if line.endswith("\\"):
            text += "\n"
            continue
        if words:
            yield _REMARK.sub("", text)
        text = ""
    if text:
        raise ValueError(f"this command does not end: {text}")


def is_command(text: str) -> bool:
    """Whether a piece of code in a sentence is a command with arguments, and not just a name."""
    return _PROGRAM.match(text) is not None and _UMBRELLA.fullmatch(text) is None and " " in text


def names_of_programs(path: Path) -> Iterator[str]:
    """Scripts and commands that a page names without arguments."""
    for match in _SPAN.finditer(_without_blocks(path.read_text(encoding="utf8"))):
        if _PROGRAM.match(match[1]) and not is_command(match[1]):
            yield match[1]


def links(path: Path) -> list[str]:
    """Targets of links within the repository, relative to the page, without their anchors."""
    page = _without_blocks(path.read_text(encoding="utf8"))
    targets = [match[1].split("#")[0] for match in _LINK.finditer(page)]
    return [target for target in targets if target and "://" not in target]


def cited_tests(path: Path) -> list[tuple[str, str]]:
    """File and function ("" for none) of each test that a page names."""
    return [(match[1], match[2] or "") for match in _TEST.finditer(path.read_text(encoding="utf8"))]


def indented_blocks(path: Path) -> list[str]:
    """Lines of code blocks that have no fence, and so no language."""
    lines = _without_blocks(path.read_text(encoding="utf8")).splitlines()
    return [line for line in lines if line.strip() and line.startswith(("    ", "\t"))]


def _without_blocks(page: str) -> str:
    """The page with its blocks blanked; nothing changes its place."""
    return _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), page)
