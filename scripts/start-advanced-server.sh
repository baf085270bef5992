#!/bin/sh
# Starts the server with the flags of the advanced engine's document. Everything else goes
# to mlx_parallm_serve as it is; see mlx_parallm_serve --help.
set -eu

usage() {
    cat <<'TEXT'
usage: start-advanced-server.sh [--model PATH] [--draft-model PATH] [--use-speculative]
                                [--max-batch-size N] [--batch-timeout-ms MS] [--port PORT]
                                [any option of mlx_parallm_serve]

  --model PATH          hub id or folder of the model (default: the bundled one)
  --draft-model PATH    smaller model with the same tokenizer that guesses ahead
  --use-speculative     guess ahead: with --draft-model, else from the text so far
TEXT
}

# Options are collected in "$@" itself, so that values with spaces stay whole.
count=$#
speculate=no
draft=no
while [ "$count" -gt 0 ]; do
    option=$1
    shift
    count=$((count - 1))
    case $option in
        -h | --help)
            usage
            exit 0
            ;;
        --model) set -- "$@" --model-path ;;
        --model=*) set -- "$@" "--model-path=${option#--model=}" ;;
        --use-speculative) speculate=yes ;;
        --draft-model | --draft-model=*)
            draft=yes
            set -- "$@" "$option"
            ;;
        *) set -- "$@" "$option" ;;
    esac
done

if [ "$speculate" = no ]; then
    # A draft model alone does not guess: the document's switch does.
    set -- --speculative off "$@"
elif [ "$draft" = no ]; then
    set -- --speculative ngram "$@"
fi

# The server of this checkout's environment, else an installed one, else the environment is made.
here=$(cd "$(dirname "$0")" && pwd)
if [ -n "${MLX_PARALLM_SERVE:-}" ]; then
    exec "$MLX_PARALLM_SERVE" "$@"
elif [ -x "$here/../.venv/bin/mlx_parallm_serve" ]; then
    exec "$here/../.venv/bin/mlx_parallm_serve" "$@"
elif command -v mlx_parallm_serve >/dev/null; then
    exec mlx_parallm_serve "$@"
fi
exec "$here/serve" "$@"
