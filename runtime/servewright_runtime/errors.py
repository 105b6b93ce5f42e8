"""Every error that a user can cause, with the exit code or HTTP status it becomes.

A message is one sentence that says who, what was wanted, what came and what to do. Code that
meets one of these prints the message alone; a traceback means a bug of ours.
"""

from __future__ import annotations


class ServewrightError(Exception):
    """Base of all errors with a message for the user. `reason` is a CamelCase word for status."""

    exit_code = 1
    reason = "Failed"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if reason is not None:
            self.reason = reason

    def told_of(self, title: str) -> ServewrightError:
        """The same error, with whom it befell before its message."""
        return type(self)(f"{title}: {self.message}", reason=self.reason)


class ConfigError(ServewrightError):
    """A configuration that a restart cannot mend: bad manifest, no such file, wrong digest."""

    exit_code = 2
    reason = "InvalidConfiguration"


class StartError(ServewrightError):
    """Something on this machine is in the way: port in use, disk full, network down."""

    exit_code = 1
    reason = "StartFailed"


class RequestError(ServewrightError):
    """An HTTP request that is answered with `status` and OpenAI's error body.

    `type` and `code` are OpenAI's words; `param` names the field at fault.
    """

    status = 400
    type = "invalid_request_error"
    reason = "BadRequest"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Unauthorized(RequestError):
    """No API key, or one that is not known. 401."""

    status = 401
    type = "authentication_error"


class NotFound(RequestError):
    """No such model or path. 404."""

    status = 404
    type = "not_found_error"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not. 405."""

    status = 405


class RequestTimeout(RequestError):
    """The request's body did not come in time. 408."""

    status = 408


class UnsupportedMediaType(RequestError):
    """The request's body is of another content type or encoding. 415."""

    status = 415


class TooLarge(RequestError):
    """The request body is over the bound. 413."""

    status = 413


class Overloaded(RequestError):
    """The queue is full. 429 with Retry-After."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """The engine is loading, draining or has failed. 503 with Retry-After."""

    status = 503
    type = "service_unavailable_error"
    retry_after_s = 1


class EngineFailed(RequestError):
    """A bug of ours ended the request after it was accepted. 500."""

    status = 500
    type = "server_error"
