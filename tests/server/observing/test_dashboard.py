"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana.json"


def test_every_metric_of_the_dashboard_is_served(serve: Any) -> None:
    server = serve()
    server.ok("/v1/completions", prompt="hello")
    served = set(re.findall(r"^(mlx_parallm:\w+)", server.http.get("/metrics").text, re.MULTILINE))
    panels = json.loads(DASHBOARD.read_text(encoding="utf8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    names = {name for expression in asked for name in re.findall(r"mlx_parallm:\w+", expression)}
    assert len(names) > 10 and names <= served
