"""The errors of other servers' APIs; ours are OpenAI's envelope."""

from __future__ import annotations

from typing import Any

OLLAMA_PREFIX = "/api/"
# Paths that llama.cpp alone has. /tokenize and /detokenize are vLLM's too and keep our envelope.
LLAMA_CPP_PATHS = frozenset(
    {"/completion", "/completions", "/props", "/slots", "/apply-template", "/infill"}
)

# llama.cpp's names for statuses, from `format_error_response` of its server.
_LLAMA_CPP_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def shaped(path: str, status: int, envelope: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI envelope as the API that has this path would write it.

    Ollama has `{"error": message}`, llama.cpp `{"error": {code, message, type}}` with the
    status as the code.
    """
    error = envelope["error"]
    if path.startswith(OLLAMA_PREFIX):
        return {"error": error["message"]}
    if path in LLAMA_CPP_PATHS:
        kind = _LLAMA_CPP_TYPES.get(status, error["type"])
        return {"error": {"code": status, "message": error["message"], "type": kind}}
    return envelope
