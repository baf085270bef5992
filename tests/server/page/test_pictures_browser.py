"""Pictures in the page: real clicks, drops and pastes, and a tiny model that sees."""

from __future__ import annotations

import base64
import json
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.server.page.clicks import Open, ended, expect, expect_toast, remember_toasts, say
from tests.waiting import PATIENCE_S

# Files arrive by an event of the browser, as from its clipboard or another window.
GIVE = """([kind, target, files]) => {
    const data = new DataTransfer();
    for (const [name, type, bytes] of files) {
        const content = Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0));
        data.items.add(new File([content], name, { type }));
    }
    const told = { dataTransfer: data, clipboardData: data, bubbles: true, cancelable: true };
    const event = kind === "drop" ? new DragEvent(kind, told) : new ClipboardEvent(kind, told);
    document.querySelector(target).dispatchEvent(event);
}"""


def png(width: int, height: int, seed: int | None = None) -> bytes:
    """One colour, or noise that cannot be compressed."""
    rng = random.Random(seed)
    row = bytes(width * 3) if seed is None else b""
    rows = b"".join(b"\0" + (row or rng.randbytes(width * 3)) for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def size_of(url: str) -> tuple[int, int]:
    """Of a PNG in a data: URL."""
    found: tuple[int, int] = struct.unpack(">II", base64.b64decode(url.split(",")[1])[16:24])
    return found


def file(name: str, content: bytes, media_type: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": media_type, "buffer": content}


def add(page: Any, *files: dict[str, Any]) -> None:
    """Choose files for the message."""
    page.locator("#composer").get_by_label("Pictures to add").set_input_files(files)


def give(page: Any, kind: str, target: str, name: str, content: bytes, media_type: str) -> None:
    """Drop or paste a file."""
    page.evaluate(GIVE, [kind, target, [[name, media_type, base64.b64encode(content).decode()]]])


@pytest.fixture(scope="module")
def seeing(helpers: Any) -> Iterator[Any]:
    """A server with a tiny random model that sees."""
    pytest.importorskip("mlx_vlm", reason="the extra for pictures is not installed")
    from tests.models.vision.tiny_vision import folder_of

    names: dict[str, Any] = {
        "model_path": str(folder_of("smolvlm")),
        "served_model_name": ("seer",),
    }
    served = helpers.Served(create_app(Settings(**names, max_tokens=4)), None, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


def shown_names(page: Any, place: str) -> Any:
    """The names of the pictures that are shown somewhere."""
    images = page.locator(f"{place} .thumbnail img")
    return images.evaluate_all("all => all.map((image) => image.alt)")


def test_pictures_keep_the_order_in_which_they_came(seeing: Any, opened: Open) -> None:
    page = opened(seeing)
    page.evaluate("""() => {
        const decode = window.createImageBitmap.bind(window);
        const held = new Promise((goOn) => { window.goOn = goOn; });
        window.createImageBitmap = async (file) => {
            if (file.name === "slow.png") await held;
            return decode(file);
        };
        window.quickIsRead = new Promise((read) => {
            const readAsDataURL = FileReader.prototype.readAsDataURL;
            FileReader.prototype.readAsDataURL = function (blob) {
                this.addEventListener("loadend", () => setTimeout(read));
                return readAsDataURL.call(this, blob);
            };
        });
    }""")
    give(page, "drop", "#transcript", "slow.png", png(30, 20), "image/png")
    give(page, "drop", "#transcript", "quick.png", png(20, 30), "image/png")
    page.evaluate("window.quickIsRead")
    assert shown_names(page, "#composer") == []
    page.evaluate("window.goOn()")
    expect(page.locator("#composer .thumbnail")).to_have_count(2)
    assert shown_names(page, "#composer") == ["slow.png", "quick.png"]


def test_pictures_are_added_sent_and_kept(seeing: Any, opened: Open) -> None:
    page = opened(seeing, permissions=["clipboard-read", "clipboard-write"])
    remember_toasts(page)
    add(page, file("large.png", png(2000, 1000)))
    give(page, "paste", "#message", "pasted.png", png(30, 20), "image/png")
    give(page, "drop", "#transcript", "dropped.png", png(20, 30), "image/png")
    remove = page.get_by_role("button", name="Remove: pasted.png")
    expect(remove).to_be_visible()
    expect(page.locator("#composer .thumbnail")).to_have_count(3)
    assert set(shown_names(page, "#composer")) == {"large.png", "pasted.png", "dropped.png"}
    give(page, "drop", "#transcript", "notes.txt", b"a text", "text/plain")
    expect_toast(page, "Only pictures and videos can be dropped here.")
    give(page, "drop", "#transcript", "broken.png", b"no picture", "image/png")
    expect_toast(page, "broken.png cannot be read as a picture.")
    remove.click()
    expect(page.locator("#composer .thumbnail")).to_have_count(2)
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = say(page, "What is this?")
    *pictures, text = json.loads(sent.value.post_data)["messages"][0]["content"]
    assert [size_of(one["image_url"]["url"]) for one in pictures] == [(1568, 784), (20, 30)]
    assert text == {"type": "text", "text": "What is this?"}
    assert answer.get_by_role("alert").count() == 0 and "tokens" in answer.inner_text()
    assert page.locator("#composer .thumbnail").count() == 0
    answer.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert '"finish_reason"' in run(command)
    page.reload()
    page.locator(".conversations").get_by_text("What is this?").click()
    expect(page.locator(".message.user .thumbnail")).to_have_count(2)
    page.get_by_role("button", name="Enlarge: large.png").click()
    expect(page.get_by_role("dialog", name="large.png").get_by_role("img")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Message", exact=True).press("ArrowUp")
    page.get_by_role("button", name="Remove: large.png").click()
    with page.expect_request("**/v1/chat/completions") as again:
        page.get_by_label("Edit the message").press("Enter")
    (picture, _) = json.loads(again.value.post_data)["messages"][0]["content"]
    assert size_of(picture["image_url"]["url"]) == (20, 30)
    ended(page)


def test_videos_are_sent_where_the_model_takes_them(seeing: Any, opened: Open) -> None:
    from tests.server.videos.conftest import Clips

    page, clips = opened(seeing), Clips()
    remember_toasts(page)
    film = clips.file(range(0, 200, 20))
    give(page, "drop", "#transcript", "film.mp4", film, "video/mp4")
    expect(page.locator("#composer .thumbnail video")).to_have_count(1)
    give(page, "drop", "#transcript", "film.avi", film, "video/x-msvideo")
    expect_toast(page, "film.avi is no MP4 or WebM.")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = say(page, "What happens?")
    video, text = json.loads(sent.value.post_data)["messages"][0]["content"]
    assert video == {"type": "video_url", "video_url": {"url": clips.url(film)}}
    assert text == {"type": "text", "text": "What happens?"}
    assert answer.get_by_role("alert").count() == 0 and "tokens" in answer.inner_text()
    page.reload()
    page.locator(".conversations").get_by_text("What happens?").click()
    page.locator(".message.user").get_by_role("button", name="Enlarge: film.mp4").click()
    expect(page.get_by_role("dialog", name="film.mp4").locator("video[controls]")).to_be_visible()


def test_a_command_with_large_pictures_reads_them_from_files(
    seeing: Any, opened: Open, tmp_path: Path
) -> None:
    page = opened(seeing, permissions=["clipboard-read", "clipboard-write"])
    (tmp_path / "it's noise.png").write_bytes(noise := png(240, 200, seed=1))
    add(page, file("it's noise.png", noise))
    expect(page.locator("#composer .thumbnail")).to_have_count(1)
    # A picture alone is a message, too.
    page.get_by_label("Message", exact=True).press("Enter")
    answer = ended(page)
    expect(answer.locator(".figures")).to_contain_text("tokens")
    answer.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    assert "# Pictures are read from files of this folder: it's noise.png" in command
    assert len(command) < 3000
    assert '"finish_reason"' in run(command, tmp_path)


def test_decisions_about_pictures(seeing: Any, opened: Open) -> None:
    page = opened(seeing)
    page.get_by_role("button", name="Decisions").click()
    give(page, "drop", "#decisions", "dropped.png", png(20, 30), "image/png")
    expect(page.locator("#decisions .thumbnail")).to_have_count(1)
    with page.expect_request("**/v1/decisions") as sent:
        page.get_by_role("button", name="Decide", exact=True).click()
    (picture,) = json.loads(sent.value.post_data)["images"]
    assert size_of(picture) == (20, 30)
    expect(page.locator(".decision")).to_have_count(3)


def run(command: str, folder: Path | None = None) -> str:
    """What a copied command prints."""
    shell = ["sh", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=PATIENCE_S, cwd=folder)
    assert "error" not in done.stdout, done.stdout
    return done.stdout


def test_a_model_that_does_not_see_says_so(server: Any, opened: Open, tmp_path: Path) -> None:
    page = opened(server, viewport={"width": 360, "height": 740})
    expect(page.get_by_label("Model", exact=True)).to_have_value("parrot")
    remember_toasts(page)
    page.get_by_role("button", name="Add pictures").click()
    expect_toast(page, "parrot does not see pictures")
    give(page, "paste", "#message", "pasted.png", png(3, 2), "image/png")
    expect_toast(page, "parrot does not see pictures", times=2)
    assert page.locator(".thumbnail").count() == 0
    # Those of a conversation that came from elsewhere are shown; the server says what is wrong.
    url = f"data:image/png;base64,{base64.b64encode(png(3, 2)).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Look!"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "I look."}]
    given = tmp_path / "conversation.json"
    given.write_text(json.dumps({"messages": messages}))
    page.get_by_label("File to import").set_input_files(given)
    expect(page.locator(".message.user .thumbnail img")).to_have_attribute("alt", "picture 1")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(say(page, "And now?").get_by_role("alert")).to_contain_text("status 400")


def test_pictures_are_exported_and_checked(server: Any, opened: Open, tmp_path: Path) -> None:
    page = opened(server)
    picture = {"name": "a", "url": f"data:image/png;base64,{base64.b64encode(png(3, 2)).decode()}"}
    parts = [{"type": "image_url", "image_url": {"url": picture["url"]}}]
    given = tmp_path / "conversation.json"
    given.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    page.get_by_label("File to import").set_input_files(given)
    expect(page.locator(".message.user .thumbnail")).to_have_count(1)
    remember_toasts(page)
    with page.expect_download() as started:
        page.get_by_role("button", name="Export all conversations").click()
    started.value.save_as(given)
    whole = json.loads(given.read_text())
    (node,) = whole["conversations"][0]["nodes"].values()
    assert [one["url"] for one in node["pictures"]] == [picture["url"]]
    node["pictures"][0]["url"] = "https://example.org/a.png"
    given.write_text(json.dumps(whole))
    page.get_by_label("File to import").set_input_files(given)
    expect_toast(page, "A picture in the file is damaged.")
