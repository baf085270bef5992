"""What the tests of the page do again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.waiting import PATIENCE_S, wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
sync_api.expect.set_options(timeout=PATIENCE_S * 1000)
expect = sync_api.expect
Open = Callable[..., Any]


def say(page: Any, text: str) -> Any:
    """Send a message and wait for the end of its answer, which is given."""
    answers = page.locator(".message.assistant")
    count = answers.count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    expect(answers).to_have_count(count + 1)
    return ended(page)


def ended(page: Any) -> Any:
    """The last answer, when it has ended."""
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    return page.locator(".message.assistant").last


def remember_toasts(page: Any) -> None:
    """Notices are gone soon; on a slow machine nobody might see them."""
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver((records) => {
            for (const { addedNodes } of records)
                for (const node of addedNodes) window.seen.push(node.textContent);
        }).observe(document.getElementById("toasts"), { childList: true });
    }""")


def expect_toast(page: Any, text: str, times: int = 1) -> None:
    """Wait until notices with this text have been shown so many times."""
    wait_until(lambda: sum(text in seen for seen in page.evaluate("window.seen")) >= times)
