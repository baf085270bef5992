"""What the scripted model says to coding agents: it runs one command, and then says so."""

from __future__ import annotations

from benchlib.model_files.scripted import END, call

COMMAND = "echo $((1234 * 5678))"
PRINTED = "7006652"
DONE = "The command has run."
SCRIPTS = {
    "Bash": "I run it." + call("Bash", command=COMMAND, description="Compute"),
    "exec_command": "I will run it." + call("exec_command", cmd=COMMAND),
    "shell_command": "Let me run it." + call("shell_command", command=COMMAND),
    "shell": "It runs now." + call("shell", command=["bash", "-c", COMMAND]),
    END: DONE,
}
