"""How each coding agent is told to use a server of ours, without asking anybody anything."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from coding_agents.script import COMMAND

TASK = f"Run the command `{COMMAND}` and say what it printed."
LIMIT_S = 300


@dataclass(frozen=True)
class Ran:
    """What a program printed."""

    code: int
    output: str


def codex(program: Path, server: str, model: str, home: Path) -> Ran:
    """Codex: speaks OpenAI's Responses.

    Args:
        server: its root, without a slash at the end.
        home: an empty folder for its settings and for its work.
    """
    provider = f'{{name="mlx_parallm", base_url="{server}/v1", wire_api="responses"}}'
    settings = ["-c", "model_provider=ours", "-c", f"model_providers.ours={provider}"]
    # In a throw-away folder: the command runs without asking.
    free = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    command = [str(program), "exec", *settings, *free, "-m", model, TASK]
    return _run(command, home, {"CODEX_HOME": str(home)})


def claude(program: Path, server: str, model: str, home: Path) -> Ran:
    """Claude Code: speaks Anthropic's Messages; arguments as of codex()."""
    command = [str(program), "-p", TASK, "--model", model, "--allowedTools", "Bash"]
    variables = {
        "ANTHROPIC_BASE_URL": server,
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CONFIG_DIR": str(home),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    return _run(command, home, variables)


def _run(command: list[str], home: Path, variables: dict[str, str]) -> Ran:
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        command,
        cwd=home,
        env=kept | {"HOME": str(home)} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LIMIT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(errors="replace"))
