"""The server as an application of Ray Serve: replicas that come and go with the work.

    python -m mlx_parallm.ray_app --min-replicas 1 --max-replicas 4 [flags of the server]
    serve run mlx_parallm.ray_app:app max_replicas=4 model_path=FOLDER

With `ray start` on several machines (Linux) replicas are spread over them. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

try:
    from ray import serve
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "mlx_parallm.ray_app needs the extra `ray`: pip install 'mlx_parallm[ray]'"
    ) from None
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from mlx_parallm.on_ray.front import Front
from mlx_parallm.on_ray.replica import Replica
from mlx_parallm.on_ray.router import PrefixRouter, SequencesPolicy
from mlx_parallm.on_ray.scale import Scale
from mlx_parallm.options.loading import ENVIRONMENT_PREFIX, load_settings
from mlx_parallm.settings import Settings, SettingsError

PROGRAM = "python -m mlx_parallm.ray_app"
_NAME = "mlx_parallm"
_HEALTH_S = 2.0
# A replica takes twice the rows of a batch, then the router asks the next one.
_TAKEN_OF_ROWS = 2


def application(settings: Settings, scale: Scale) -> serve.Application:
    """The application for serve.run().

    Raises:
        SettingsError: settings that several replicas cannot have.
    """
    if not 1 <= scale.min_replicas <= scale.max_replicas:
        raise SettingsError("there are 1 <= --min-replicas <= --max-replicas")
    if scale.max_replicas > 1 and (settings.memory_dir or settings.response_store):
        raise SettingsError(
            "--memory-dir and --response-store belong to one replica; several share --memory-store"
        )
    return _front(settings).bind(_replicas(settings, scale), settings, scale)


def _replicas(settings: Settings, scale: Scale) -> serve.Application:
    rows = settings.max_batch_size
    policy = AutoscalingPolicy(policy_function=SequencesPolicy, policy_kwargs={"rows": rows})
    deployment = serve.deployment(
        Replica,
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        max_ongoing_requests=_TAKEN_OF_ROWS * rows,
        max_queued_requests=settings.max_queue,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.min_replicas,
            max_replicas=scale.max_replicas,
            policy=policy,
        ),
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
        graceful_shutdown_timeout_s=settings.drain_timeout,
        health_check_period_s=_HEALTH_S,
    )
    return deployment.bind(settings, dict(scale.adapters))


def _front(settings: Settings) -> serve.Deployment:
    return serve.deployment(
        serve.ingress()(Front),
        name="Front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=100_000,
        graceful_shutdown_timeout_s=settings.drain_timeout,
    )


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """For `serve run` and configuration files of Ray: fields of Scale, and options of the server.

    Raises:
        SettingsError: unknown or wrong arguments.
    """
    own = {field.name for field in fields(Scale)}
    options = {field.name for field in fields(Settings)}
    environment = dict(os.environ)
    scale: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in own:
            scale[name] = value if name == "adapters" else _number(name, value)
        elif name in options:
            environment[ENVIRONMENT_PREFIX + name.upper()] = str(value)
        else:
            raise SettingsError(f"there is no option {name!r}")
    return application(load_settings([], environment), Scale(**scale))


def _number(name: str, value: Any) -> int | float:
    try:
        return float(value) if name in ("cpus", "gpus") else int(value)
    except (TypeError, ValueError):
        raise SettingsError(f"{name} is a number, not {value!r}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal, on a Ray of its own or the one that RAY_ADDRESS names.

    Returns:
        The exit code: 0 after Ctrl-C or SIGTERM, 2 for wrong options.
    """
    options, flags = _parser().parse_known_args(argv)
    scale = Scale(
        options.min_replicas,
        max(options.min_replicas, options.max_replicas or 0),
        options.cpus_per_replica,
        options.gpus_per_replica,
        dict(entry.split("=", 1) for entry in options.adapter),
    )
    try:
        settings = load_settings(flags)
        built = application(settings, scale)
    except SettingsError as error:
        sys.stderr.write(f"{PROGRAM}: error: {error}\n")
        return 2
    serve.start(http_options={"host": options.host, "port": options.port})
    serve.run(built, name=_NAME)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # not before Ray sets its own
        signal.signal(number, lambda *_: stopped.set())
    name = settings.model_names[0]
    sys.stdout.write(f"mlx_parallm serves {name} at http://{options.host}:{options.port} on Ray\n")
    sys.stdout.flush()
    stopped.wait()
    serve.delete(_NAME)  # replicas and fronts finish what they have
    serve.shutdown()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Replicas of the server on Ray Serve, as many as the work needs.",
        epilog="Every other option is one of `mlx_parallm serve`, for each of the replicas.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address of the front")
    add("--port", type=int, default=8000, help="its port")
    add("--min-replicas", type=int, default=1)
    add("--max-replicas", type=int, help="as many as the least, where it is not given")
    add("--cpus-per-replica", type=float, default=1.0, help="that Ray sets aside")
    add("--gpus-per-replica", type=float, default=0.0, help="that Ray sets aside")
    add(
        "--adapter",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=FOLDER",
        help="read by a replica that is asked for it; may be given several times",
    )
    return parser


def _named(text: str) -> str:
    name, found, folder = text.partition("=")
    if not (name and found and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, not {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
