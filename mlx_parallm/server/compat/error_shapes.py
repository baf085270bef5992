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

MESSAGES_PATH = "/v1/messages"
# Anthropic's statuses and names: https://platform.claude.com/docs/en/api/errors
_MESSAGES_STATUSES = {408: 504, 503: 529}
_MESSAGES_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def status_for(path: str, status: int) -> int:
    """The status of an error as the API that has this path would send it."""
    return _MESSAGES_STATUSES.get(status, status) if _is_messages(path) else status


def _is_messages(path: str) -> bool:
    return path == MESSAGES_PATH or path.startswith(MESSAGES_PATH + "/")


def shaped(path: str, status: int, envelope: dict[str, Any]) -> dict[str, Any]:
    """An OpenAI envelope as the API that has this path would write it.

    Anthropic has `{"type": "error", "error": {type, message}}`, Ollama `{"error": message}`,
    llama.cpp `{"error": {code, message, type}}` with the status as the code.
    """
    error = envelope["error"]
    if _is_messages(path):
        kind = _MESSAGES_TYPES.get(status_for(path, status), "invalid_request_error")
        message = error["message"]
        if error.get("code") == "context_length_exceeded":
            # Clients look for these words to make the conversation shorter.
            message = f"prompt is too long: {message}"
        return {"type": "error", "error": {"type": kind, "message": message}}
    if path.startswith(OLLAMA_PREFIX):
        return {"error": error["message"]}
    if path in LLAMA_CPP_PATHS:
        kind = _LLAMA_CPP_TYPES.get(status, error["type"])
        return {"error": {"code": status, "message": error["message"], "type": kind}}
    return envelope
