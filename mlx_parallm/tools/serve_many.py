"""The command `mlx_parallm serve-many N`: replicas of the server behind smg's router.

smg (the Shepherd Model Gateway) sends requests with the same
beginning to the same replica, whose prefix cache has it, and tries a request again where a
replica has gone. It restarts nothing; that is done here. Needs the extra `replicas`.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence

from mlx_parallm.options.loading import load_settings
from mlx_parallm.settings import SettingsError
from mlx_parallm.tools.replicas import Replica, Supervisor, free_port
from mlx_parallm.tools.router import router_of

PROGRAM = "mlx_parallm serve-many"
# Beyond --drain-timeout, until replicas that have not ended are killed.
DRAIN_MARGIN_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, 1 where it cannot run, 2 for wrong options.
    """
    options, flags = _parser().parse_known_args(argv)
    if options.replicas < 1:
        return _complain("N is the number of replicas, at least 1")
    if importlib.util.find_spec("smg") is None:
        return _complain("it needs the extra `replicas`: pip install 'mlx_parallm[replicas]'")
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        return _complain(str(error))
    if settings.ssl_certfile is not None:
        return _complain("the router has no TLS here; put a reverse proxy in front of it")
    command = [sys.executable, "-m", "mlx_parallm.cli", *flags]
    replicas = [Replica(command, free_port()) for _ in range(options.replicas)]
    urls = [replica.url for replica in replicas]
    host, port = options.host or settings.host, options.port or settings.port
    router = router_of(settings, host, port, options.policy, urls)
    drain_s = settings.drain_timeout + DRAIN_MARGIN_S
    supervisor = Supervisor(replicas, router, port, drain_s)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.stop())
    address = f"http://{host}:{port}"
    name = settings.model_names[0]
    return supervisor.run(f"mlx_parallm serves {name} at {address} from {len(replicas)} replicas")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Several replicas of the server behind a router that keeps prefixes together.",
        epilog="Every other option is one of `mlx_parallm serve`, for each of the replicas.",
    )
    parser.add_argument("replicas", metavar="N", type=int, help="how many")
    parser.add_argument("--host", help="address of the router (127.0.0.1)")
    parser.add_argument("--port", type=int, help="its port (8000)")
    parser.add_argument(
        "--policy", default="cache_aware", help="smg's: cache_aware, round_robin, least_load, ..."
    )
    return parser


def _complain(message: str) -> int:
    sys.stderr.write(f"{PROGRAM}: error: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
