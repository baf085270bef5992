#!/usr/bin/env bash
# usage: scripts/try_agents.sh [--model PATH] [--record FOLDER]
# Lets Codex and Claude Code do a small task with a server of ours, without asking anybody.
# Needs node and npm, which install both into a temporary folder (about 640 MB). The default model
# says what a script tells it to; another one needs a context of 32k tokens.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
case ${1:-} in -h | --help) sed -n '2,5s/^# *//p' "${BASH_SOURCE[0]}"; exit ;; esac
command -v npm >/dev/null || { echo "npm is needed: it comes with node" >&2; exit 1; }
ensure_environment dev
programs=$(mktemp -d)
trap 'rm -rf "$programs"' EXIT
npm install --prefix "$programs" --no-audit --no-fund --loglevel=error \
    "@openai/codex@${CODEX_VERSION:-^0.169.0}" "@anthropic-ai/claude-code@${CLAUDE_CODE_VERSION:-^2.1.197}"
cd "$root/scripts"
PYTHONPATH=$root/scripts:$root "$venv/bin/python" -m coding_agents.run "$programs/node_modules/.bin" "$@"
