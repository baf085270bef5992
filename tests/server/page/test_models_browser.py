"""Several models in the page: real clicks against a real fleet of two tiny ones."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.models.loader import load_model
from mlx_parallm.server.fleet.app import create_fleet_app
from mlx_parallm.settings import Settings
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.models.tiny_hub import TinyHub
from tests.server.page.clicks import Open, ended, expect, expect_toast, remember_toasts, say

KEY = "secret"


@pytest.fixture(scope="module")
def fleet(helpers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The bundled model, its draft, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{}")
    options: dict[str, Any] = {
        "also_serve": ("bundled/draft",),
        "models_dir": str(folder),
        "admin_key": (KEY,),
    }
    settings = Settings(**options, pin_model=("bundled",), log_level="warning")
    served = helpers.Served(create_fleet_app(settings), None, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


def unlock(page: Any) -> None:
    """Answer the question for the admin key."""
    page.get_by_role("textbox", name="Admin key").fill(KEY)
    page.keyboard.press("Enter")


def model(page: Any, name: str) -> Any:
    """A model in the list."""
    return page.get_by_role("listitem", name=f"{name}: ")


def test_models_are_loaded_by_a_message_and_by_clicks(fleet: Any, opened: Open) -> None:
    page = opened(fleet, permissions=["clipboard-read", "clipboard-write"])
    expect(page.locator("#model option")).to_have_text(
        ["bundled", "bundled/draft (not loaded)", "damaged (not loaded)"]
    )
    page.get_by_label("Model", exact=True).select_option("bundled/draft")
    expect(page.locator("#composer .note")).to_contain_text("the first message loads it")
    page.keyboard.press("Alt+d")
    expect(page.locator("#dashboard .state")).to_contain_text("bundled/draft is not loaded")
    page.keyboard.press("Alt+d")
    answer = say(page, "hi")
    expect(answer.locator(".who")).to_have_text("bundled/draft")
    assert answer.get_by_role("alert").count() == 0
    expect(page.locator("#composer .note")).to_be_empty()
    page.keyboard.press("Alt+m")
    expect(page.locator("#models .state")).to_contain_text("2 of 3 loaded")
    expect(model(page, "bundled")).to_contain_text("pinned")
    draft = model(page, "bundled/draft")
    expect(draft).to_contain_text("in the chat")
    draft.get_by_role("button", name="Unload:").click()
    unlock(page)
    expect(draft).to_contain_text("Not loaded")
    expect(page.get_by_role("button", name="Load: bundled/draft", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Unload: bundled/draft")).to_be_focused()
    page.get_by_role("button", name="Copy as curl: unload bundled/draft").click()
    command = page.evaluate("navigator.clipboard.readText()")
    told = subprocess.run(
        ["sh", "-c", command], capture_output=True, env=os.environ | {"ADMIN_KEY": KEY}
    )
    assert json.loads(told.stdout)["status"] == "unloaded"
    # To look again is no reason to load it.
    page.keyboard.press("Alt+m")
    with page.expect_response("**/v1/adapters"):
        page.keyboard.press("Alt+m")
    expect(draft).to_contain_text("Not loaded")
    assert fleet.http.get("/v1/models/bundled/draft").json()["status"] == "unloaded"
    page.get_by_role("button", name="Chat with bundled", exact=True).click()
    expect(page.get_by_label("Model", exact=True)).to_have_value("bundled")
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_what_cannot_be_loaded_says_why(fleet: Any, opened: Open) -> None:
    page = opened(fleet)
    page.get_by_role("button", name="Models", exact=True).click()
    model(page, "damaged").get_by_role("button", name="Load:").click()
    unlock(page)
    expect(model(page, "damaged")).to_contain_text("there is no model_type in it")
    expect(page.get_by_role("button", name="Try again: damaged")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("damaged")
    page.keyboard.press("Escape")
    expect(page.locator("#composer .note")).to_contain_text("there is no model_type in it")
    expect(say(page, "hi").get_by_role("alert")).to_contain_text("there is no model_type")


def test_how_far_the_loading_is(
    fleet: Any, opened: Open, monkeypatch: pytest.MonkeyPatch, helpers: Any
) -> None:
    from mlx_parallm.server import main

    gate, load = threading.Event(), main.build_engine

    def held(settings: Any, *, progress: Any) -> Any:
        engine = load(settings, progress=progress)
        progress.tell("reading", 1_000_000, 4_000_000)
        inner = engine._load

        def wait() -> Any:
            gate.wait()
            return inner()

        engine._load = wait
        return engine

    page = opened(fleet)
    fleet.http.post("/v1/models/bundled/draft/unload", headers={"x-admin-key": KEY})
    monkeypatch.setattr(main, "build_engine", held)
    page.keyboard.press("Alt+m")
    draft = model(page, "bundled/draft")
    draft.get_by_role("button", name="Load:").click()
    unlock(page)
    expect(draft).to_contain_text("Reading 25% · 1.0 MB of 4.0 MB")
    expect(draft.get_by_role("progressbar")).to_have_attribute("aria-valuetext", "25%")
    page.get_by_role("button", name="Chat with bundled/draft").click()
    page.get_by_label("Message", exact=True).fill("hi")
    page.keyboard.press("Enter")
    expect(page.locator(".message .waiting")).to_have_text("The model is reading 25%")
    gate.set()
    expect(ended(page).locator(".who")).to_have_text("bundled/draft")


def test_adapters_have_versions(fleet: Any, opened: Open, tmp_path: Path) -> None:
    one, two = (
        mlx_lm_adapter(tmp_path / name, load_model("bundled").model, seed, keys=list(ALL))
        for seed, name in enumerate(("one", "two"))
    )
    page = opened(fleet)
    remember_toasts(page)
    page.keyboard.press("Alt+m")
    bundled = model(page, "bundled")
    bundled.get_by_text("Load an adapter").click()
    bundled.get_by_label("Name").fill("poet")
    bundled.get_by_label("Folder on the server").fill(str(one))
    bundled.get_by_role("button", name="Load", exact=True).click()
    unlock(page)
    poet = bundled.locator(".adapter")
    expect(poet).to_contain_text("version 1 · rank 4")
    poet.get_by_role("button", name="New version of poet").click()
    bundled.get_by_label("Folder on the server").fill(str(two))
    bundled.get_by_role("button", name="Load as the next version").click()
    expect(poet).to_contain_text("version 2")
    poet.get_by_role("button", name="Back to 1 of poet").click()
    expect(poet).to_contain_text("version 1")
    assert fleet.http.get("/v1/adapters/poet").json()["version"] == 1
    expect(page.locator("#model optgroup option")).to_have_text(["bundled", "poet · adapter"])
    bundled.get_by_text("Load an adapter").click()
    bundled.get_by_label("Name").fill("other")
    bundled.get_by_label("Folder on the server").fill(str(tmp_path / "none"))
    bundled.get_by_role("button", name="Load", exact=True).click()
    expect_toast(page, "none")
    poet.get_by_role("button", name="Forget the adapter poet").click()
    page.get_by_role("button", name="Forget", exact=True).click()
    expect(poet).to_have_count(0)


def test_a_model_is_pulled(fleet: Any, opened: Open, hub: TinyHub) -> None:
    hub.gate["model.safetensors"] = gate = threading.Event()
    page = opened(fleet, viewport={"width": 360, "height": 740})
    remember_toasts(page)
    page.get_by_role("button", name="Models", exact=True).click()
    name = page.get_by_label("Model to pull")
    name.fill("a/b")
    name.press("Enter")
    unlock(page)
    bar = page.get_by_role("progressbar", name="Pulling a/b")
    expect(bar).to_have_attribute("aria-valuetext", "1.5 MB of 3.0 MB · 50%")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Another page looks on.
    other = opened(fleet)
    other.keyboard.press("Alt+m")
    expect(other.get_by_role("progressbar", name="Pulling a/b")).to_be_visible()
    page.get_by_role("button", name="Cancel: a/b").click()
    expect_toast(page, "What came so far is kept")
    expect(page.locator(".pulls li")).to_have_count(0)
    expect(other.locator(".pulls li")).to_have_count(0)
    gate.set()
    name.fill("a/b")
    name.press("Enter")
    expect(model(page, "a/b")).to_contain_text("Not loaded · 3.0 MB")
    name.fill("nowhere/at-all")
    hub.statuses["/api/models/nowhere/"] = [(404, {"X-Error-Code": "RepoNotFound"})]
    name.press("Enter")
    expect(page.locator(".pulls .error")).to_contain_text("has no such model")
    page.get_by_role("button", name="Dismiss: nowhere/at-all").click()
    expect(page.locator(".pulls li")).to_have_count(0)


def test_one_model_is_shown_too(bundled: Any, opened: Open) -> None:
    page = opened(bundled, color_scheme="dark", viewport={"width": 360, "height": 740})
    page.keyboard.press("Alt+m")
    expect(page.locator("#models .state")).to_have_text("One model")
    expect(model(page, "bundled")).to_contain_text("Loaded")
    assert page.get_by_label("Model to pull").is_hidden()
    assert page.get_by_role("button", name="Unload").count() == 0
    nameless = """[...document.querySelectorAll('button, select, input, textarea')].filter(one =>
        !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length))
        .map(one => one.outerHTML)"""
    assert json.loads(page.evaluate(f"JSON.stringify({nameless})")) == []
