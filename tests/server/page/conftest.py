"""A browser, pages in it, and the server that most of them show."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("there is no Chromium here")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"], timeout=PATIENCE_S * 1000
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def bundled(helpers: Any) -> Iterator[Any]:
    """A server with the bundled model."""
    served = helpers.Served(create_app(Settings()), None, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """opened(server, **options of the context) gives a page; no error may show in its console."""
    contexts, errors = [], []

    def note(message: Any) -> None:
        # Answers with an error status are told there too; the tests ask for some.
        expected = re.search("status of (4..|503)", message.text)
        if message.type == "error" and not expected:
            errors.append(message.text)

    def start(server: Any, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert errors == []
