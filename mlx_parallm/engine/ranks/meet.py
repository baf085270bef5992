"""Ranks that meet: rank 0 leads, the others follow."""

from __future__ import annotations

from mlx_parallm.engine.ranks.follower import Follower
from mlx_parallm.engine.ranks.group import join, leader_host, tell, try_neighbours
from mlx_parallm.engine.ranks.leader import Leader
from mlx_parallm.engine.ranks.links import Door, connect
from mlx_parallm.engine.ranks.met import OnEnd
from mlx_parallm.engine.ranks.ranks import Ranks


def meet(size: int, facts: str, limit_s: float, on_end: OnEnd, *, in_stages: bool = False) -> Ranks:
    """Join the group that this process was started for, on the engine's thread.

    Args:
        facts: what has to be the same on all ranks, besides versions and devices.
        limit_s: seconds of silence after which a rank counts as stopped; 0 is never.
        on_end: called with the reason when another rank has ended or stopped.
        in_stages: each rank has some layers, not a part of all of them.

    Raises:
        ModelLoadError: the ranks do not meet, or are not the same.
    """
    group = join(size)
    if in_stages:
        try_neighbours(group)
    if group.rank() == 0:
        door = Door(leader_host())
        tell(group, door.address)
        links = door.wait_for(size)
        return Leader(group, links, facts, limit_s, on_end, in_stages=in_stages)
    link = connect(tell(group, b""), group.rank())
    return Follower(group, link, facts, limit_s, on_end, in_stages=in_stages)
