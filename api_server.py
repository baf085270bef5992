"""The server from the repository's root: `python api_server.py`, or `uvicorn api_server:app`.

As a program it is mlx_parallm_serve, with its options. See mlx_parallm/api_server.py for `app`.
"""

import sys

if __name__ == "__main__":
    from mlx_parallm.cli import main

    sys.exit(main())

from mlx_parallm.api_server import app

__all__ = ["app"]
