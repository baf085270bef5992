"""Real servers for the tests: Debian's redis-server and postgresql, started here."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_S, wait_until


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def redis_server() -> Iterator[str]:
    """The address of a Redis server that keeps nothing on the disk."""
    pytest.importorskip("redis", reason="the package redis is not installed")
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", "/tmp"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        address = f"redis://127.0.0.1:{port}/0"
        _wait_for(process, lambda: _redis_answers(address))
        yield address
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a PostgreSQL database of its own."""
    pytest.importorskip("psycopg", reason="the package psycopg is not installed")
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    owner = _owner()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data, port = folder / "data", free_port()
    as_owner: dict[str, Any] = {}
    if owner is not None:
        as_owner = {"user": owner.pw_uid, "group": owner.pw_gid}
    environment = {**os.environ, "LC_ALL": "C"}
    process: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "test", "-A", "trust", "--no-sync"],
            check=True,
            capture_output=True,
            cwd="/",
            env=environment,
            **as_owner,
        )
        options = ["-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options],
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
            **as_owner,
        )
        address = f"postgresql://test@127.0.0.1:{port}/postgres"
        _wait_for(process, lambda: _postgres_answers(address))
        yield address
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # which does not wait for clients
            process.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


def neo4j_server() -> str:
    """The address of the Neo4j that the environment names."""
    pytest.importorskip("neo4j", reason="the package neo4j is not installed")
    address = os.environ.get("NEO4J_URI")
    if not address:
        pytest.skip("NEO4J_URI is not set")
    return address


def _postgres_binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    found = shutil.which("initdb")
    if found is not None:
        folders.append(Path(found).resolve().parent)
    whole = [folder for folder in folders if (folder / "initdb").exists()]
    return whole[-1] if whole else None


def _owner() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _redis_answers(address: str) -> bool:
    import redis

    try:
        with redis.Redis.from_url(address) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _postgres_answers(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True


def _wait_for(process: subprocess.Popen[bytes], answers: Callable[[], bool]) -> None:
    def ready() -> bool:
        if process.poll() is not None:
            pytest.fail(f"the server ended at once with {process.returncode}")
        return answers()

    wait_until(ready)
