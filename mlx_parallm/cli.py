"""The command `mlx_parallm_serve`: settings, a socket, the server, and a clean end."""

from __future__ import annotations

import errno
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Opens a fast BLAS (on Linux CPUs), which must come before the first import of mlx.
from mlx_parallm.cpu import blas
from mlx_parallm.cpu.huge_pages import restart_with_huge_pages
from mlx_parallm.engine.ranks.launch import (
    LocalRanks,
    end_with_leader,
    kill_local_ranks,
    rank_of_environment,
    serving_command,
)
from mlx_parallm.errors import ParallmError, UnsupportedError
from mlx_parallm.greeting import Greeting
from mlx_parallm.open_files import raise_limit
from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.listener import free_port_near, listen
from mlx_parallm.server.observing.log_format import set_up_logging
from mlx_parallm.server.tls import tls_context
from mlx_parallm.settings import PROGRAM, Settings, SettingsError

if TYPE_CHECKING:
    from mlx_parallm.server.state import ServerState

logger = logging.getLogger("mlx_parallm")

# How long answering those may take that the drain could not finish.
_ANSWER_S = 2

# After that an engine that has failed is not waited for any longer.
_GIVE_UP_S = 5.0

_EXIT_FAILURE = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to stop.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit code: 0 after Ctrl-C, 130 or 143 after a second one, 1 when the server cannot run,
        2 for wrong options.
    """
    try:
        if argv is None:
            restart_with_huge_pages()
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        # Before the server ran; later ones are handled there.
        return _EXIT_INTERRUPTED


def _main(argv: Sequence[str]) -> int:
    try:
        settings = load_settings(argv)
    except SettingsError as error:
        return _complain(str(error), _EXIT_USAGE)
    set_up_logging(settings.log_level, settings.log_format)
    blas.preload()
    rank = rank_of_environment() if settings.num_ranks > 1 else None
    if rank:
        return _follow(settings)
    try:
        listener = listen(settings.host, settings.port)
    except OSError as error:
        return _complain(_why_not_listening(error, settings), _EXIT_FAILURE)
    _warn_of_strangers(settings, listener)
    with listener:
        if settings.num_ranks == 1 or rank == 0:
            return _serve(settings, listener)
        with LocalRanks(serving_command(argv), settings.num_ranks, _end_soon):
            return _serve(settings, listener)


def _follow(settings: Settings) -> int:
    """Compute with rank 0, which has the server, until it ends."""
    from mlx_parallm.server.main import build_engine

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # rank 0 ends when all is answered, then this one
    end_with_leader()
    engine = build_engine(settings)
    engine.on_failure = _end_now
    engine.start()
    try:
        engine.wait_ready()
    except ParallmError as error:
        engine.thread.join()  # it tells rank 0 why
        _end_now(str(error))  # at once: MLX's group aborts a process that exits on its own
    engine.thread.join()
    return 0


def _serve(settings: Settings, listener: socket.socket) -> int:
    # Imported late: `--help` and wrong options answer at once.
    from mlx_parallm.errors import UnavailableError
    from mlx_parallm.server.fleet.app import create_fleet_app
    from mlx_parallm.server.fleet.catalog import is_fleet
    from mlx_parallm.server.gate.limits import ConnectionLimits
    from mlx_parallm.server.main import create_app
    from mlx_parallm.server.runner import Runner

    try:
        tls = tls_context(settings)
    except SettingsError as error:
        return _complain(str(error), _EXIT_USAGE)
    if settings.strict and (failed := _failed_checks(settings)):
        return _complain(failed, _EXIT_FAILURE)
    began = time.perf_counter()
    failures: list[Exception] = []

    def on_ready(state: ServerState) -> None:
        # What was loaded stays: the collector need not look at a hundred thousand objects again,
        # which would stop all streams for a moment each time.
        # A model of several may be unloaded, and is then to be collected.
        if not is_fleet(settings):
            gc.collect()
            gc.freeze()
        if not state.loaded().is_encoder:
            state.prompts().compiler.start()
        _greet(_greeting(state, listener, time.perf_counter() - began))

    def on_failure(error: Exception) -> None:
        failures.append(error)
        runner.should_exit = True

    def on_engine_failure(reason: str) -> None:
        failures.append(UnavailableError(f"the engine failed: {reason}"))
        runner.should_exit = True
        # The engine's thread may never end, and whatever waits for it.
        _end_soon(str(failures[-1]))

    ends_on_failure = settings.exit_on_engine_failure or settings.num_ranks > 1
    try:
        make = create_fleet_app if is_fleet(settings) else create_app
        app = make(
            settings,
            on_ready=on_ready,
            on_failure=on_failure,
            on_engine_failure=on_engine_failure if ends_on_failure else None,
        )
    except (UnsupportedError, SettingsError) as error:
        return _complain(str(error), _EXIT_USAGE)
    limits = ConnectionLimits.of(settings, raise_limit())
    runner = Runner(app, drain_s=settings.drain_timeout, answer_s=_ANSWER_S, limits=limits, tls=tls)
    runner.run(sockets=[listener])
    if failures:
        return _complain(str(failures[0]), _EXIT_FAILURE)
    return 0


def _end_soon(message: str) -> None:
    """End with an error, but let those be answered first who wait."""
    timer = threading.Timer(_GIVE_UP_S, _end_now, (message,))
    timer.daemon = True
    timer.start()


def _end_now(message: str) -> None:
    _complain(message, _EXIT_FAILURE)
    kill_local_ranks()
    logging.shutdown()
    os._exit(_EXIT_FAILURE)


def _failed_checks(settings: Settings) -> str:
    """What --strict has against the model; nothing where all is well."""
    from mlx_parallm.errors import ModelLoadError
    from mlx_parallm.tools.checks.numbers import QUICK
    from mlx_parallm.tools.checks.run import check_model

    try:
        report = check_model(settings.model_path, QUICK, settings.dtype)
    except ModelLoadError as error:
        return str(error)
    failed = "; ".join(f"{finding.name}: {finding.text}" for finding in report.failures)
    return failed and f"--strict: {settings.model_path} fails its checks: {failed}"


def _greet(greeting: Greeting) -> None:
    """The block for people; into a pipe one line that scripts wait for, and the facts as a log."""
    if sys.stdout.isatty():
        _say(greeting.block())
        return
    _say(greeting.line())
    for label, text in greeting.facts():
        logger.info("%s: %s", label, text)


def _greeting(state: ServerState, listener: socket.socket, seconds: float) -> Greeting:
    from mlx_parallm.models.device_memory import available_kv_bytes, device_name, total_memory

    loaded, settings, here = state.loaded(), state.settings, state.engine.ranks.here
    limit = settings.memory_limit or (None if here == 1 else total_memory() // here)
    memory = settings.kv_cache_memory or available_kv_bytes(
        loaded.nbytes, settings.gpu_memory_utilization, limit
    )
    return Greeting(
        settings,
        _address(listener, settings),
        loaded.num_parameters,
        loaded.dtype,
        loaded.max_model_len,
        device_name(),
        str(blas.info()),
        memory,
        seconds,
    )


def _address(listener: socket.socket, settings: Settings) -> str:
    """Where clients on this machine find the server."""
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.ssl_certfile is None else "https"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _warn_of_strangers(settings: Settings, listener: socket.socket) -> None:
    """Say it where everybody who reaches this machine may use the server."""
    host = listener.getsockname()[0]
    if not settings.has_keys and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        logger.warning(
            "%s can be reached from other machines, and anybody may use it: there is no --api-key",
            host,
        )


def _why_not_listening(error: OSError, settings: Settings) -> str:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        free = free_port_near(settings.host, settings.port)
        other = "another port with --port" if free is None else f"--port {free}"
        return f"{place} is already in use; try {other}"
    if error.errno == errno.EACCES:
        return f"{place} may not be used by this user; choose another port with --port"
    return f"cannot listen on {place}: {error.strerror or error}"


def _complain(message: str, code: int) -> int:
    first_line = (message.strip().splitlines() or ["unknown error"])[0]
    sys.stderr.write(f"{PROGRAM}: error: {first_line}\n")
    return code


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    # At once, also into a pipe: scripts wait for this line.
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
