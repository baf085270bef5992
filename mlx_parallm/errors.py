"""Everything that can go wrong for a client or an operator, as one tree.

    ParallmError
    ├── InvalidRequestError          400  invalid_request_error
    │   ├── ContextLengthError       400  context_length_exceeded
    │   └── UnsupportedError         400  unsupported_parameter
    ├── AuthenticationError          401  invalid_api_key
    ├── NotFoundError                404  model_not_found, ...
    ├── BodyTooLargeError            413  request_too_large
    ├── QueueFullError               429  rate_limit_exceeded    Retry-After
    ├── RateLimitError               429  requests_per_minute_exceeded, ...    Retry-After
    ├── UnavailableError             503  service_unavailable    Retry-After
    │   ├── OutOfMemoryError         503  insufficient_memory    Retry-After
    │   └── RankLostError            503  rank_lost    Retry-After
    ├── RequestTimeoutError          408  request_timeout
    ├── RequestCancelledError        409  request_cancelled
    ├── ConflictError                409  conflict
    │   └── NotMadeYetError          409  collection_not_ready    Retry-After
    ├── NotOfferedError              501  not_offered
    ├── SequenceError                500  internal_error
    │   └── NotANumberError          500  not_a_number
    ├── ModelLoadError               (start-up)
    └── TrainingError                (mlx_parallm_train)

Each class carries what the HTTP layer needs to answer in OpenAI's envelope;
see https://platform.openai.com/docs/guides/error-codes for the types.
"""

from __future__ import annotations


class ParallmError(Exception):
    """Root of the tree.

    Args:
        message: one sentence for the client; never contains internals.
        param: the request field at fault, in the client's spelling.
        code: a machine-readable reason; the class has a default.
    """

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's JSON object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidRequestError(ParallmError):
    """A value that can never be served."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None


class ContextLengthError(InvalidRequestError):
    """Prompt plus requested tokens do not fit the model's context."""

    code = "context_length_exceeded"


class UnsupportedError(InvalidRequestError):
    """A known parameter that this server or this model does not support."""

    code = "unsupported_parameter"


class AuthenticationError(ParallmError):
    """Missing or wrong API key."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class NotFoundError(ParallmError):
    """Unknown model, adapter, collection, request or route."""

    status = 404
    type = "not_found_error"
    code = "not_found"


class BodyTooLargeError(ParallmError):
    """The request body is over the limit."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class RequestTimeoutError(ParallmError):
    """The request ran longer than --request-timeout allows."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class RequestCancelledError(ParallmError):
    """Somebody ended the request through DELETE /status/{id}."""

    status = 409
    type = "invalid_request_error"
    code = "request_cancelled"


class ConflictError(ParallmError):
    """Another change of the same thing is under way."""

    status = 409
    type = "invalid_request_error"
    code = "conflict"


class NotMadeYetError(ConflictError):
    """Memories that are still being made: try again later."""

    code = "collection_not_ready"
    retry_after_s = 1


class NotOfferedError(ParallmError):
    """A call of another server's API that cannot be answered here, and why."""

    status = 501
    type = "invalid_request_error"
    code = "not_offered"


class QueueFullError(ParallmError):
    """More requests wait than --max-queue allows."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retry_after_s = 1


class RateLimitError(ParallmError):
    """A client has used up what its key may do in a minute."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class UnavailableError(ParallmError):
    """Loading, draining or stopped: try again later."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"
    retry_after_s = 5


class OutOfMemoryError(UnavailableError):
    """No memory is left for this request now."""

    code = "insufficient_memory"


class RankLostError(UnavailableError):
    """A process that has a part of the model has ended, or computes something else."""

    code = "rank_lost"


class SequenceError(ParallmError):
    """A fault of ours while computing one sequence; the others went on."""


class NotANumberError(SequenceError):
    """The model's logits, scores or hidden states for one sequence are NaN."""

    code = "not_a_number"


class ModelLoadError(ParallmError):
    """A model folder that cannot be served; raised at start-up."""

    code = "model_load_error"


class TrainingError(ParallmError):
    """A training that cannot begin or go on: its data, its rewards or its checkpoint."""

    code = "training_error"
