"""The chat page in a browser: real clicks, and real streams of the bundled model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from mlx_parallm.models.loader import load_model
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.server.page.clicks import Open, ended, expect, say
from tests.waiting import PATIENCE_S

FACTS = "The code of Mira is 57. The code of Tom is 23. The code of Anna is 91."
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'


def test_an_answer_streams_and_is_there_after_a_reload(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    page.get_by_role("button", name="What is 34 plus 25?").click()
    answer = ended(page)
    expect(answer).to_contain_text("59")
    assert re.search(r"\d+ tokens · [\d.]+/s · first after [\d.]+ s", answer.inner_text())
    assert "59" in page.locator("#announcer").inner_text()
    page.reload()
    page.locator(".conversations").get_by_text("What is 34 plus 25?").click()
    expect(page.locator(".message.assistant")).to_contain_text("59")
    assert page.evaluate("document.activeElement.id") == "message"


def test_answers_again_edits_and_goes_between_versions(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    say(page, "What is 34 plus 25?")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".versions")).to_have_text("2/2")
    ended(page)
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator(".versions")).to_have_text("1/2")
    page.get_by_label("Message", exact=True).press("ArrowUp")
    page.get_by_label("Edit the message").fill("What is 11 plus 12?")
    page.keyboard.press("Enter")
    expect(page.locator(".message.user .versions")).to_have_text("2/2")
    expect(ended(page)).to_contain_text("23")


def test_probabilities_and_going_on_from_an_alternative(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    say(page, "How do I start the server?")
    page.get_by_role("button", name="Tokens and probabilities").click()
    token = page.locator(".token").nth(2)
    before = "".join(page.locator(".token").all_inner_texts()[:2])
    token.hover()
    choices = page.locator(".token-card button:enabled")
    expect(choices.first).to_contain_text("%")
    text = choices.first.locator(".alternative").inner_text().replace("␣", " ")
    with page.expect_request("**/v1/chat/completions") as sent:
        choices.first.click()
    body = json.loads(sent.value.post_data)
    assert body["continue_final_message"] is True
    assert body["messages"][-1] == {"role": "assistant", "content": before + text}
    expect(page.locator(".versions")).to_have_text("2/2")
    assert ended(page).locator(".prose").inner_text().startswith((before + text).strip())
    # The same by keys alone.
    page.get_by_role("button", name="Tokens and probabilities").press("Enter")
    page.locator(".token").first.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter", "Enter"):
        page.keyboard.press(key)
    expect(page.locator(".versions")).to_have_text("3/3")
    ended(page)


def test_memories_are_added_and_cited(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_text("Add a text").click()
    page.get_by_label("Text to remember").fill(FACTS)
    page.get_by_role("button", name="Remember", exact=True).click()
    expect(page.get_by_role("checkbox")).to_be_checked()
    answer = say(page, "What is the code of Mira?")
    expect(answer.locator("mark")).to_contain_text("57")
    expect(answer.locator(".sources")).to_contain_text("The code of Mira is 57.")
    answer.get_by_role("button", name="Source 1").click()
    assert page.evaluate("document.activeElement.dataset.source") == "1"


def test_a_copied_command_asks_the_same(bundled: Any, opened: Open) -> None:
    page = opened(bundled, permissions=["clipboard-read", "clipboard-write"])
    page.keyboard.press("Alt+s")
    page.get_by_label("System prompt").fill("It's a test.")
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Temperature").blur()
    answer = say(page, "What is 34 plus 25?")
    answer.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert "It'\\''s a test." in command and '"temperature": 0' in command
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE_S)
    events = [
        json.loads(line[6:]) for line in done.stdout.split("\n\n") if line.startswith("data: {")
    ]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text.strip() == answer.locator(".prose").inner_text().strip() != ""


def test_the_dashboard_moves(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    page.keyboard.press("Alt+d")
    plot = page.locator(
        ".plot", has=page.get_by_role("heading", name="Tokens a second", exact=True)
    )
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "ignore_eos": True}
    bundled.ok("/v1/chat/completions", **body)
    expect(plot.locator(".most")).to_contain_text("peak")
    first = plot.locator(".line").get_attribute("d")
    expect(plot.locator(".line")).not_to_have_attribute("d", first)
    expect(plot.get_by_role("img")).to_have_attribute("aria-label", re.compile("now .* peak"))
    expect(page.locator(".plot", has_text="Batch")).to_contain_text("of 32")
    # What a sheet says of the chat's notes is not for these.
    expect(plot.locator(".note")).to_have_css("text-align", "start")


def test_an_adapter_is_chosen_below_its_model(bundled: Any, opened: Open, tmp_path: Path) -> None:
    folder = mlx_lm_adapter(tmp_path / "poet", load_model("bundled").model, 1, keys=list(ALL))
    loaded = bundled.http.post("/v1/adapters", json={"name": "poet", "path": str(folder)})
    assert loaded.status_code < 300, loaded.text
    page = opened(bundled)
    below = page.locator("#model optgroup[label=bundled] option")
    expect(below).to_have_text(["bundled", "poet · adapter"])
    page.get_by_label("Model", exact=True).select_option("poet")
    page.keyboard.press("Alt+s")
    page.get_by_label("Longest answer").fill("4")
    page.get_by_label("Longest answer").blur()
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = say(page, "hi")
    assert json.loads(sent.value.post_data)["model"] == "poet"
    expect(answer.locator(".who")).to_have_text("poet")
    assert answer.get_by_role("alert").count() == 0
    bundled.http.delete("/v1/adapters/poet")


def test_decisions_are_bars(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    page.get_by_role("button", name="Decisions").click()
    with page.expect_response("**/v1/decisions") as got:
        page.get_by_role("button", name="Decide", exact=True).click()
    answers = got.value.json()["answers"]
    shown = page.locator(".decision")
    expect(shown).to_have_count(len(answers))
    chance = f"{answers[0]['probability'] * 100:.1f}%"
    expect(shown.first.locator(".outcome").first).to_contain_text(chance)
    width = "one => one.firstChild.offsetWidth / one.offsetWidth"
    track = shown.nth(1).locator(".track").first
    share = answers[1]["probabilities"][0]["probability"]
    assert abs(track.evaluate(width) - share) < 0.02
    page.get_by_label("Options").nth(1).fill("delivery")
    page.get_by_role("button", name="Decide", exact=True).click()
    expect(page.locator("#decisions").get_by_role("alert")).to_be_visible()


def test_stop_and_go_on(serve: Any, opened: Open, helpers: Any) -> None:
    server = serve()
    page = opened(server)
    page.get_by_label("Message", exact=True).fill("polly " * 40)
    answer = page.locator(".message.assistant")
    with server.engine.held(steps=20):
        page.keyboard.press("Enter")
        expect(answer).to_contain_text("polly polly")
        page.get_by_role("button", name="Stop").click()
        expect(answer).to_contain_text("stopped")
        helpers.wait_until(lambda: len(server.engine.aborted) == 1)
    assert answer.locator(".prose").inner_text().count("polly") < 40
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".versions")).to_have_text("2/2")
    page.keyboard.press("Escape")
    ended(page)


def test_thinking_tools_markdown_and_errors(server: Any, opened: Open) -> None:
    page = opened(server)
    thought = say(page, "<think>It is easy.</think>Hello")
    expect(thought.get_by_text("Thought")).to_be_visible()
    expect(thought.get_by_text("It is easy.")).to_be_hidden()
    expect(thought.locator(":scope > .prose")).to_have_text("Hello")
    hostile = say(page, "**bold** <img src=x onerror=alert(1)> [link](javascript:alert(1)) `code`")
    expect(hostile.locator("strong")).to_have_text("bold")
    assert hostile.locator("img, [onerror], [href^=javascript]").count() == 0
    error = say(page, "long " * 200)
    expect(error.get_by_role("alert")).to_contain_text("status 400")
    page.keyboard.press("Alt+n")
    page.keyboard.press("Alt+s")
    page.get_by_role("button", name="Example").nth(1).click()
    expect(page.locator(".chip")).to_contain_text("1 tool")
    call = say(page, CALL)
    expect(call.locator(".call")).to_contain_text("get_weather")
    page.get_by_label("Result of get_weather").fill("sunny")
    page.get_by_role("button", name="Send the result").click()
    expect(page.locator(".message.assistant")).to_have_count(2)
    expect(ended(page)).to_contain_text("sunny")


def test_a_schema_is_checked_and_kept_to(bundled: Any, opened: Open) -> None:
    page = opened(bundled)
    page.keyboard.press("Alt+s")
    page.get_by_label("Temperature").fill("0")
    box = page.get_by_label("JSON schema of the answer")
    box.fill('{"type": ')
    expect(page.get_by_text("No JSON yet")).to_be_visible()
    sure = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    box.fill(json.dumps(sure | {"additionalProperties": False}))
    answer = say(page, "What is 34 plus 25?")
    assert isinstance(json.loads(answer.locator(".code code").inner_text())["sure"], bool)
    page.get_by_role("button", name="Remove: JSON schema").click()
    expect(page.locator(".chip")).to_have_count(0)


def test_export_and_import(server: Any, opened: Open, tmp_path: Path) -> None:
    page = opened(server)
    say(page, "a parrot")
    with page.expect_download() as started:
        page.get_by_role("button", name="Export all conversations").click()
    file = tmp_path / "conversations.json"
    started.value.save_as(file)
    other = opened(server)
    other.get_by_label("File to import").set_input_files(file)
    expect(other.locator(".message.assistant")).to_contain_text("a parrot")
    damaged = json.loads(file.read_text())
    next(iter(damaged["conversations"][0]["nodes"].values()))["parent"] = "nowhere"
    file.write_text(json.dumps(damaged))
    other.get_by_label("File to import").set_input_files(file)
    expect(other.get_by_text("A message in the file is damaged.")).to_be_visible()
    other.locator(".conversations li").hover()
    other.get_by_role("button", name="Delete: a parrot").click()
    other.get_by_role("button", name="Delete", exact=True).click()
    expect(other.get_by_text("Conversations are kept in this browser.")).to_be_visible()


def test_a_key_is_asked_for_and_kept(serve: Any, opened: Open) -> None:
    page = opened(serve(api_key=("secret",)))
    page.get_by_role("textbox", name="API key").fill("secret")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_have_value("parrot")
    assert "hi" in say(page, "hi").inner_text()
    page.reload()
    expect(page.get_by_label("Model", exact=True)).to_have_value("parrot")
    assert page.locator("dialog").count() == 0


def test_narrow_dark_and_named(server: Any, opened: Open) -> None:
    page = opened(server, viewport={"width": 360, "height": 640}, color_scheme="dark")
    say(page, "```python\n" + "x = 1 " * 40 + "\n```")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Theme: system").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark == "rgb(22, 23, 25)" and light == "rgb(247, 246, 243)"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Settings", exact=True).click()
    nameless = """[...document.querySelectorAll('button, select, input, textarea')].filter(one =>
        !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length))
        .map(one => one.outerHTML)"""
    assert page.evaluate(nameless) == []
