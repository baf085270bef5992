"""What Codex and Claude Code sent to this server, sent again: the answer has the same events.

The requests were recorded by `scripts/try_agents.sh --record`, while the programs themselves did a
task with the scripted model: they ran a command, and accepted both answers. Long texts are cut,
and of Claude Code's tools three are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchlib.model_files import scripted
from benchlib.servers import our_command, spawn
from coding_agents import script
from coding_agents.recorder import Exchange

from tests.waiting import PATIENCE_S

RECORDED = Path(__file__).with_name("recorded")
PROGRAMS = ("codex", "claude_code")
# The events that hold pieces, of Responses and of Messages.
_ARGUMENTS = ("response.function_call_arguments.delta", "input_json_delta")
_TEXT = ("response.output_text.delta", "text_delta")


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the model that the programs had."""
    folder = scripted.make(tmp_path_factory.mktemp("models") / "agents", script.SCRIPTS)
    with spawn("agents", our_command(folder, "--served-model-name", "served")) as server:
        yield server.url


def send(url: str, recorded: dict[str, Any]) -> Exchange:
    answer = httpx.post(url + recorded["path"], json=recorded["body"], timeout=PATIENCE_S)
    return Exchange("POST", recorded["path"], recorded["body"], answer.status_code, answer.text)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_answers_have_the_events_that_were_accepted(server_url: str, program: str) -> None:
    exchanges = json.loads((RECORDED / f"{program}.json").read_text(encoding="utf-8"))["exchanges"]
    answers = [send(server_url, recorded) for recorded in exchanges]
    assert [answer.status for answer in answers] == [200, 200]
    assert [answer.events for answer in answers] == [one["events"] for one in exchanges]
    # First the call, and after its result the end.
    assert script.COMMAND in json.loads(_joined(answers[0].answer, *_ARGUMENTS)).values()
    assert _joined(answers[1].answer, *_TEXT) == script.DONE


def _joined(answer: str, *types: str) -> str:
    """The pieces of these types in a stream of either API."""
    lines = [line.removeprefix("data: ") for line in answer.splitlines() if line[:5] == "data:"]
    events = [json.loads(line) for line in lines]
    deltas = [event | event["delta"] for event in events if isinstance(event.get("delta"), dict)]
    deltas += [event | {"text": event["delta"]} for event in events if _is_text(event)]
    pieces = [delta for delta in deltas if delta["type"] in types]
    return "".join(piece.get("text") or piece.get("partial_json", "") for piece in pieces)


def _is_text(event: dict[str, Any]) -> bool:
    return isinstance(event.get("delta"), str)


def test_claude_code_asks_whether_anybody_is_there(server_url: str) -> None:
    assert httpx.head(server_url + "/").status_code == 200
