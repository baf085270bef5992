"""GET /v1/loads: how busy this server is, as SGLang says it; routers in front ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from mlx_parallm import __version__
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.openapi import ERRORS
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Operation"])

_SECTIONS = ("core", "memory", "spec", "lora", "disagg", "queues", "all")


@router.get("/loads", include_in_schema=False)
@router.get("/v1/loads", summary="How busy this server is", responses=ERRORS)
async def loads(
    request: Request,
    include: Annotated[
        list[str] | None,
        Query(description=f"Of {', '.join(_SECTIONS)}; all that there is here is `core`."),
    ] = None,
    model: Annotated[str, Query(description="One that is served here.")] = "",
) -> Response:
    """SGLang's form with one rank; the throughput is that of all computing so far."""
    _check_sections(include or ())
    state = state_of(request)
    state.check_known(model)
    load = _load(state)
    total = load["num_running_reqs"] + load["num_waiting_reqs"]
    return json_answer(
        {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": f"mlx_parallm-{__version__}",
            "dp_rank_count": 1,
            "loads": [load],
            "aggregate": {
                "total_running_reqs": load["num_running_reqs"],
                "total_waiting_reqs": load["num_waiting_reqs"],
                "total_reqs": total,
                "avg_token_usage": load["token_usage"],
                "avg_throughput": load["gen_throughput"],
                "avg_utilization": load["utilization"],
            },
        }
    )


def _check_sections(include: Sequence[str]) -> None:
    """SGLang's sections, separated by commas or given several times."""
    for name in ",".join(include).split(",") if include else ():
        if name not in _SECTIONS:
            raise InvalidRequestError(
                f"'include' is of {', '.join(_SECTIONS)}, not {name[:100]!r}.", param="include"
            )


def _load(state: ServerState) -> dict[str, Any]:
    stats, rows = state.engine.stats(), state.engine.config.max_batch_size
    used, most = stats.kv_tokens_used, stats.kv_tokens_total
    return {
        "dp_rank": 0,
        "num_running_reqs": stats.running,
        "num_waiting_reqs": stats.waiting + len(state.queue),
        "num_used_tokens": used,
        "num_total_tokens": used,
        "max_total_num_tokens": most,
        "token_usage": used / most if most else 0.0,
        "gen_throughput": stats.generated_tokens / stats.step_time if stats.step_time else 0.0,
        "cache_hit_rate": stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else 0.0,
        "utilization": stats.running / rows,
        "max_running_requests": rows,
    }
