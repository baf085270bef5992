"""Let each coding agent do a small task with a server of ours, and say how it went.

python -m coding_agents.run PROGRAMS [--model PATH] [--record FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchlib.model_files import scripted
from benchlib.servers import our_command, spawn

from coding_agents import programs, script
from coding_agents.recorder import Exchange, recording, shortened

NAME = "served"
AGENTS = {"codex": programs.codex, "claude": programs.claude}


def main() -> int:
    """Run them; 0 where each has done its task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("programs", type=Path, help="folder of the programs `codex` and `claude`")
    parser.add_argument("--model", help="a model with a context of 32k; default: a scripted one")
    parser.add_argument("--record", type=Path, help="folder for what was sent and answered")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agents-") as work:
        folder = Path(work)
        model = args.model or scripted.make(folder / "model", script.SCRIPTS)
        with spawn(NAME, our_command(model, "--served-model-name", NAME)) as server:
            done = [
                _try(agent, args.programs / agent, server.url, folder, args.record, not args.model)
                for agent in AGENTS
            ]
    return 0 if all(done) else 1


def _try(
    agent: str, program: Path, url: str, folder: Path, record: Path | None, is_scripted: bool
) -> bool:
    home = folder / agent
    home.mkdir()
    version = subprocess.run([str(program), "--version"], capture_output=True, text=True)
    with recording(url) as recorder:
        ran = AGENTS[agent](program, recorder.url, NAME, home)
    refused = [exchange for exchange in recorder.exchanges if exchange.status != 200]
    is_done = ran.code == 0 and not refused
    if is_scripted:
        is_done = is_done and _has_run(ran, recorder.exchanges)
    print(f"== {version.stdout.strip()}: {'done' if is_done else 'FAILED'} ({ran.code})")
    print(ran.output.strip())
    for exchange in recorder.exchanges:
        print(f"-- {exchange.method} {exchange.path} {exchange.status}")
    if record is not None:
        _record(record / f"{agent}.json", version.stdout.strip(), recorder.exchanges, home)
    return is_done


def _has_run(ran: programs.Ran, exchanges: list[Exchange]) -> bool:
    """Whether the program ran the command, sent what it printed, and showed the last answer."""
    return script.DONE in ran.output and script.PRINTED in json.dumps(exchanges[-1].body)


def _record(path: Path, program: str, exchanges: list[Exchange], home: Path) -> None:
    kept = [
        {"path": one.path, "body": shortened(one.body), "events": one.events}
        for one in exchanges
        if one.body is not None
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"program": program, "exchanges": kept}, indent=1, ensure_ascii=False)
    path.write_text(text.replace(str(home), "/home/user") + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
