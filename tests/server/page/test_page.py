"""The files of the chat page, over HTTP."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.page import FOLDER

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def test_browsers_get_the_page_and_everybody_else_the_greeting(serve: Any) -> None:
    server = serve(api_key=("secret",), ready=False)
    page = server.http.get("/", headers=HTML)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert "accept" in page.headers["vary"]
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page.text)
    assert server.http.get("/").json()["name"] == "mlx_parallm"
    assert server.http.head("/", headers=HTML).headers["content-type"] == "application/json"


def test_no_ui_takes_the_page_away(serve: Any) -> None:
    assert load_settings(["--no-ui"], {}).no_ui and load_settings(["--no-webui"], {}).no_ui
    server = serve(no_ui=True)
    assert server.http.get("/", headers=HTML).json()["name"] == "mlx_parallm"
    assert server.http.get("/page/js/main.js").status_code == 404


def test_every_file_that_the_page_names_is_served_once_for_all(server: Any) -> None:
    page = server.http.get("/", headers=HTML).text
    waiting: list[str] = re.findall(r'(?:src|href)="(page/[^"]+)"', page)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = server.http.get(f"/{name}")
        assert answer.status_code == 200, name
        tag = {"if-none-match": answer.headers["etag"]}
        assert server.http.get(f"/{name}", headers=tag).status_code == 304
        folder = Path(name).parent
        for found in re.findall(r'(?:from|import) "(\.[^"]+)"', answer.text):
            path = (Path("/") / folder / found).resolve()
            waiting.append(str(path.relative_to("/")))
    assert len(seen) > 30


@pytest.mark.parametrize("name", ["nope.js", "README.md", "..%2fpage.py", "vendor/marked.LICENSE"])
def test_only_the_pages_files_are_served(server: Any, name: str) -> None:
    assert server.http.get(f"/page/{name}").json()["error"]["code"] == "unknown_url"


def test_the_page_is_lean_and_asks_nobody_else() -> None:
    vendored = list((FOLDER / "vendor").rglob("*"))
    assert sum(path.stat().st_size for path in vendored if path.is_file()) < 250_000
    licences = {path.stem for path in vendored if path.suffix == ".LICENSE"}
    assert licences == {"marked", "dompurify", "highlight"}
    own = [path for path in FOLDER.rglob("*.*") if "vendor" not in path.parts]
    for path in own:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert path.suffix == ".md" or "://" not in text, path
        assert len(text.splitlines()) < 520, path
