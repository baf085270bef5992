"""llama.cpp's server out of the wheel xllamacpp, as a program.

python llama_server.py FILE.gguf PORT SLOTS CONTEXT

SLOTS requests run at once, each with CONTEXT tokens at most. It computes with as many threads
as it may use CPUs.
"""

from __future__ import annotations

import os
import sys
import threading

import xllamacpp


def main() -> None:
    """Serve until the process is ended."""
    file, port, slots, context = sys.argv[1], *map(int, sys.argv[2:])
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.hostnames = file, port, ["127.0.0.1"]
    params.n_parallel, params.n_ctx = slots, slots * context
    threads = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cont_batching = True
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
