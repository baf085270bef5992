"""MLX's group of ranks, and arrays that are rank 0's on all of them."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from contextlib import suppress
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import ModelLoadError

_LONGEST = 512  # bytes that are told
_ELSEWHERE = ("192.0.2.1", 9)  # an address for documentation, RFC 5737


def join(size: int) -> mx.distributed.Group:
    """The group that this process was started for.

    Raises:
        ModelLoadError: there is none, or it has another size.
    """
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise ModelLoadError(f"{size} ranks are wanted, but they do not meet: {error}") from error
    if group.size() != size:
        raise ModelLoadError(
            f"{size} ranks are wanted, but {group.size()} were started; give both the same number"
        )
    return group


def try_neighbours(group: mx.distributed.Group) -> None:
    """Send something from each rank to the next one, which not every backend can.

    Raises:
        ModelLoadError: this one cannot.
    """
    rank, nothing = group.rank(), mx.zeros(1)
    try:
        if rank > 0:
            mx.eval(mx.distributed.recv_like(nothing, rank - 1, group=group))
        if rank < group.size() - 1:
            mx.eval(mx.distributed.send(nothing, rank + 1, group=group))
    except (RuntimeError, ValueError) as error:
        raise ModelLoadError(f"--pipeline-parallel: ranks cannot send here: {error}") from error


def tell(group: mx.distributed.Group, data: bytes) -> bytes:
    """Rank 0's bytes, on all ranks; what others give is ignored.

    Raises:
        ValueError: more than a few hundred.
    """
    if len(data) > _LONGEST - 2:
        raise ValueError("too much to tell")
    line = np.zeros(_LONGEST, dtype=np.int32)
    if group.rank() == 0:
        line[:2] = divmod(len(data), 256)
        line[2 : 2 + len(data)] = np.frombuffer(data, dtype=np.uint8)
    told = np.array(mx.distributed.all_sum(mx.array(line), group=group))
    size = int(told[0]) * 256 + int(told[1])
    return bytes(told[2 : 2 + size].astype(np.uint8))


def from_leader(group: mx.distributed.Group, array: mx.array) -> mx.array:
    """Rank 0's array on all ranks, on the device.

    Ranks compute the same logits where their devices are the same. Where they are not, a near
    tie could be another token on one of them.
    """
    own = array if group.rank() == 0 else mx.zeros_like(array)
    return mx.distributed.all_sum(own, group=group)


def leader_host() -> str:
    """An address of rank 0's that the others reach, as the launcher says it; on rank 0."""
    file = os.environ.get("MLX_HOSTFILE")
    if file:
        first = json.loads(Path(file).read_text())[0]
        addresses = first if isinstance(first, list) else first["ips"]
        return str(addresses[0]).rpartition(":")[0] or str(addresses[0])
    for name in ("MLX_JACCL_COORDINATOR", "NCCL_HOST_IP"):
        if os.environ.get(name):
            return os.environ[name].partition(":")[0]
    return _address_of(socket.gethostbyname(socket.gethostname()))


def _address_of(named: str) -> str:
    """An address that other machines reach: Linux often gives a host's own name a loopback one."""
    if not ipaddress.ip_address(named).is_loopback:
        return named
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, suppress(OSError):
        asked.connect(_ELSEWHERE)  # sends nothing: the system only chooses an interface
        return str(asked.getsockname()[0])
    return named  # there is no network
