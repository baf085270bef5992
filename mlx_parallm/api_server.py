"""`app` for an ASGI server of your own: `uvicorn mlx_parallm.api_server:app`.

Options come from the environment (MLX_PARALLM_MODEL_PATH and so on, see mlx_parallm_serve
--help), since an ASGI server has command-line options of its own. One worker only: each would
load the model. mlx_parallm_serve has more: it waits for requests when it is stopped, and uses
large memory pages.
"""

from __future__ import annotations

from mlx_parallm.options.loading import load_settings
from mlx_parallm.server.main import create_app

app = create_app(load_settings([]))
