"""smg's router as a child process, and how it gets its keys.

Run as a program it is `python -m smg.launch_router` with keys that come in a variable of the
environment: arguments are seen by everybody on the machine.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_parallm.options.key_file import read_key_file
from mlx_parallm.settings import Settings
from mlx_parallm.tools.child import Child
from mlx_parallm.tools.replicas import free_port

_KEYS = "MLX_PARALLM_ROUTER_KEYS"


def router_of(settings: Settings, host: str, port: int, policy: str, urls: Sequence[str]) -> Child:
    """The router in front of replicas that were started with these settings."""
    command = router_command(host, port, policy, urls, settings.max_queue)
    return Child("the router", command, {_KEYS: json.dumps(key_arguments(settings))})


def router_command(
    host: str, port: int | str, policy: str, urls: Sequence[str], max_queue: int
) -> list[str]:
    """Starts a router without keys.

    Args:
        host, port: where it listens; its own figures for Prometheus are on a free port of
            this machine.
        policy: smg's name of how it chooses a replica.
        max_queue: of a replica; smg passes one over whose queue is as long. It takes 8 by
            itself: a burst would go to whoever had a short queue two seconds ago.
    """
    return [
        *(sys.executable, "-m", "mlx_parallm.tools.router"),
        *("--host", host, "--port", str(port)),
        *("--worker-urls", *urls),
        *("--policy", policy),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
        *("--health-check-interval-secs", "2", "--load-monitor-interval", "1"),
        *("--worker-overload-waiting-requests", str(max_queue)),
        *("--log-level", "warn"),
        *("--shutdown-grace-period-secs", "1"),  # it ends last, with nothing in flight
    ]


def key_arguments(settings: Settings) -> list[str]:
    """smg's arguments for who may ask, and who may add and remove replicas.

    It asks the replicas themselves with the first key. Every client's key is passed on with its
    requests. Only the admin key changes the list of replicas; where there are keys but no admin
    key, nobody does.
    """
    clients = [(f"key-{place}", key) for place, key in enumerate(settings.api_key, start=1)]
    if settings.api_key_file is not None:
        found = read_key_file(Path(settings.api_key_file).expanduser())
        clients += [(entry.name, entry.key) for entry in found]
    arguments = [f"--api-key={clients[0][1]}"] if clients else []
    for name, key in clients[1:]:
        arguments += ["--tenant-api-key", f"{name}:{key}"]
    admins = settings.admin_key or ((secrets.token_urlsafe(),) if clients else ())
    entries = [f"admin-{place}:admin:admin:{key}" for place, key in enumerate(admins)]
    return [*arguments, "--control-plane-api-keys", *entries] if entries else arguments


def main() -> None:
    """Route until a signal."""
    from smg.launch_router import launch_router, parse_router_args

    launch_router(parse_router_args([*sys.argv[1:], *json.loads(os.environ.pop(_KEYS, "[]"))]))


if __name__ == "__main__":
    main()
