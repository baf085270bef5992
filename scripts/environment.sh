# Sourced by the other scripts: ensure_environment runtime|dev
#
# Makes .venv and installs the locked packages and this one (editable), when they are not there
# or pyproject.toml or the lock file has changed. Says so on standard error; otherwise it is silent.
# PYTHON names the interpreter to use. pip is used as it is configured on this machine.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3.14 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
        [ -z "${PYTHON:-}" ] || break
    done
    echo "Python 3.11 or newer with the venv module is needed; set PYTHON to one." >&2
    return 1
}

# The lock file up to the section that asks for more than $1 needs.
locked() {
    case $1 in
    runtime) sed '/^# === dev ===/,$d' "$root/requirements.lock.txt" ;;
    dev) cat "$root/requirements.lock.txt" ;;
    esac
}

ensure_environment() {
    local kind=$1 stamp state python
    stamp=$venv/.installed-$kind
    state=$(cat "$root/pyproject.toml" "$root/requirements.lock.txt" | cksum; echo "${PYTHON:-} $root")
    if [ -f "$stamp" ] && [ "$(<"$stamp")" = "$state" ] && [ -x "$venv/bin/python" ]; then
        return
    fi
    python=$(find_python)
    echo "Installing into $venv ($kind; only when something has changed)" >&2
    # Another interpreter or place needs another environment.
    if ! [ -x "$venv/bin/pip" ] || ! [ "$(tail -n 1 "$venv/.made-with" 2>/dev/null)" = "$python $root" ]; then
        "$python" -m venv --clear "$venv"
        echo "$python $root" >"$venv/.made-with"
    fi
    rm -f "$stamp"
    locked "$kind" >"$venv/locked-$kind.txt"
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    # Compiled afterwards, by all cores. Some packages hold files that no Python 3 can compile.
    "${pip[@]}" --no-compile --require-hashes -r "$venv/locked-$kind.txt" >&2
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
    # hatchling, which builds this package, is in the lock file too.
    "${pip[@]}" --no-deps --no-build-isolation --editable "$root" >&2
    echo "$state" >"$stamp"
    # The tools' environment is the server's too.
    [ "$kind" = runtime ] || echo "$state" >"$venv/.installed-runtime"
}
