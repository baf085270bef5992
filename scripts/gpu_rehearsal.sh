#!/usr/bin/env bash
# What a GPU says: installs, tests and measures on a machine with a CUDA GPU, Python and pip.
#
#   scripts/gpu_rehearsal.sh           all of it; 25 GB of disk, GPU memory for an 8B model
#   scripts/gpu_rehearsal.sh --quick   a tiny model with the Python in $PYTHON (default python3),
#                                      on any device, to see that it runs; installs nothing
#
# REHEARSAL_MODELS chooses models of scripts/bench_models.py, REHEARSAL_OUT the folder for the
# results. It ends with 1 when something failed, but goes on until then.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

quick=()
models=${REHEARSAL_MODELS:-1b-bf16 1b-4bit 8b-bf16 8b-4bit}
case ${1:-} in
--quick) quick=(--quick) models=tiny-4bit ;;
"") ;;
*) echo "usage: $0 [--quick]" >&2 && exit 2 ;;
esac
out=${REHEARSAL_OUT:-$(mktemp -d)}
mkdir -p "$out"
failed=()

# part NAME COMMAND...: prints what it prints, keeps it in a file, and goes on when it fails.
part() {
    local name=$1
    shift
    printf '\n## %s\n\n' "$name"
    "$@" 2> >(tee "$out/$name.stderr" >&2) | tee "$out/$name.md" || failed+=("$name")
}

# The CUDA backend for the driver that is there. It and the CPU backend of the plain install are
# the same file, and whichever is unpacked last wins: so both go, and then one comes.
install() {
    python3 -m venv .venv-gpu
    local pip=(.venv-gpu/bin/python -m pip --disable-pip-version-check) cuda version
    "${pip[@]}" install --quiet --editable '.[dev]'
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')
    version=$(.venv-gpu/bin/python -c 'import importlib.metadata as m; print(m.version("mlx"))')
    "${pip[@]}" uninstall --quiet --yes mlx-cpu mlx-cuda-12 mlx-cuda-13
    "${pip[@]}" install --quiet "mlx[cuda$((cuda < 13 ? 12 : 13))]==$version"
}

device() {
    "$python" - "$@" <<'END'
import sys

import mlx.core as mx

device = mx.default_device()
print(f"mlx {mx.__version__} computes on {device}: {mx.device_info()}")
if device.type != mx.gpu and "--quick" not in sys.argv:
    sys.exit("This is no GPU, and figures of a rehearsal on a CPU would mean nothing.")
END
}

# Batching, caches, kernels and real engines: what may differ on another device.
tests=(tests/engine tests/cache tests/models tests/server/test_real_engine.py
    tests/server/test_completions.py tests/server/test_chat.py tests/clients/test_openai_sdk.py)

if [ ${#quick[@]} = 0 ]; then
    install
    python=.venv-gpu/bin/python
    nvidia-smi
else
    python=${PYTHON:-python3}
fi
device "${quick[@]}"
if [ ${#quick[@]} = 0 ]; then
    part tests "$python" -m pytest -q --timeout 900 "${tests[@]}"
else
    ls -d "${tests[@]}" >/dev/null # whoever runs this runs them too
fi
for model in $models; do
    part "engine-$model" "$python" scripts/bench_engine.py --scenario rows profile floor \
        --model-path "$model" --rounds 2 --json "$out/engine-$model.json" "${quick[@]}"
    if [ ${#quick[@]} = 0 ] && command -v nsys >/dev/null; then
        part "kernels-$model" nsys profile --force-overwrite true --stats true \
            --output "$out/kernels-$model" "$python" scripts/bench_engine.py \
            --scenario profile --model-path "$model" --rounds 1
    fi
done
loads=()
for model in $models; do loads+=(--only "$model"); done
part serving "$python" scripts/bench_serving.py --preset gpu --rounds 2 \
    --json "$out/serving.json" "${loads[@]}" "${quick[@]}"

printf '\nResults lie in %s.\n' "$out"
if [ ${#failed[@]} != 0 ]; then
    printf 'FAILED: %s\n' "${failed[*]}"
    exit 1
fi
