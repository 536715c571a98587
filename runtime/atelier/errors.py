"""Every error a caller can meet, and the one table that says how each protocol reports it.

Raise the most specific class with a sentence that names the bad value and the remedy. Handlers look
the class up in `report()`; nobody maps an exception to a status by hand. This module knows no web
framework.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

MAX_MESSAGE = 4000
"""Characters: whoever sends a name of a megabyte does not get it back."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


class AtelierError(Exception):
    """Base of all errors of this package. The message is written for the person who sent the
    request."""

    def __init__(self, message: str) -> None:
        if len(message) > MAX_MESSAGE:
            message = message[:MAX_MESSAGE] + " ..."
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes with all they carry, whatever their constructor takes."""
        return _revive, (type(self), self.message), self.__dict__


def shown(value: Any) -> str:
    """A caller's value as an error tells it: cut short, and never written out whole first."""
    return _SHORT.repr(value)


def _revive(cls: type[AtelierError], message: str) -> AtelierError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    return error


class InvalidRequest(AtelierError):
    """The request cannot be served as written. `field` names the part of the body that is wrong, if
    one does."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContentRefused(AtelierError):
    """A filter that this server's settings name stops the prompt or the picture."""


class Unauthorized(AtelierError):
    """No API key, or one that is not in API_KEYS."""


class ModelUnknown(AtelierError):
    """The request names a model this server does not have."""


class NotFound(AtelierError):
    """A job, a picture or a route that is not here, or not any more."""


class PayloadTooLarge(AtelierError):
    """The body is larger than MAX_BODY_BYTES."""


class TooSlow(AtelierError):
    """The body does not arrive in time."""


class UnsupportedEncoding(AtelierError):
    """The body is packed in a way that is not known here."""


class Busy(AtelierError):
    """The queue is full. `retry_after_s` is when a place is expected, from measured step times."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Cancelled(AtelierError):
    """The client went away or cancelled; nobody is waiting for the answer."""


class DeviceOutOfMemory(AtelierError):
    """The request does not fit the device even alone."""


class NotReady(AtelierError):
    """The model is still loading, or failed to load. `retry_after_s` is when it is expected, if
    that is known."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Draining(AtelierError):
    """The server is shutting down and admits nothing new."""


class DeadlineExceeded(AtelierError):
    """The request's time is up; its work was dropped."""


class GenerationFailed(AtelierError):
    """The pipeline or engine raised; the message carries what it said."""


class EndpointFailed(AtelierError):
    """A picture endpoint that this process is a client of refused, failed or cannot be reached."""


class StoreFailed(AtelierError):
    """The store of pictures cannot take or give one: its disk is full, or its server is away."""


class StartError(AtelierError):
    """The server, or a command, cannot begin: what follows is a fault of configuration or of the
    checkpoint."""


class SettingsError(StartError):
    """An environment variable or option has a value that is not allowed."""


class CheckpointError(StartError):
    """The checkpoint lacks something, or holds something that cannot be loaded."""


class SourceError(StartError):
    """The weights could not be fetched from where MODEL_ID points."""


class PlanError(StartError):
    """No memory plan fits the device, or a setting forbids the only one that does."""


@dataclass(frozen=True)
class ErrorReport:
    """How one error class is told to clients: HTTP status, OpenAI error type and code, gRPC status
    code name."""

    status: int
    openai_type: str
    code: str
    grpc: str


REPORTS: dict[type[AtelierError], ErrorReport] = {
    InvalidRequest: ErrorReport(400, "invalid_request_error", "invalid_value", "INVALID_ARGUMENT"),
    ContentRefused: ErrorReport(
        400, "invalid_request_error", "content_policy_violation", "INVALID_ARGUMENT"
    ),
    Unauthorized: ErrorReport(401, "authentication_error", "invalid_api_key", "UNAUTHENTICATED"),
    ModelUnknown: ErrorReport(404, "invalid_request_error", "model_not_found", "NOT_FOUND"),
    NotFound: ErrorReport(404, "invalid_request_error", "not_found", "NOT_FOUND"),
    PayloadTooLarge: ErrorReport(
        413, "invalid_request_error", "payload_too_large", "RESOURCE_EXHAUSTED"
    ),
    TooSlow: ErrorReport(408, "timeout_error", "request_timeout", "DEADLINE_EXCEEDED"),
    UnsupportedEncoding: ErrorReport(
        415, "invalid_request_error", "unsupported_encoding", "INVALID_ARGUMENT"
    ),
    Busy: ErrorReport(429, "rate_limit_error", "queue_full", "RESOURCE_EXHAUSTED"),
    Cancelled: ErrorReport(499, "request_cancelled", "cancelled", "CANCELLED"),
    DeviceOutOfMemory: ErrorReport(503, "server_error", "out_of_memory", "RESOURCE_EXHAUSTED"),
    NotReady: ErrorReport(503, "server_error", "not_ready", "UNAVAILABLE"),
    Draining: ErrorReport(503, "server_error", "draining", "UNAVAILABLE"),
    DeadlineExceeded: ErrorReport(504, "timeout_error", "deadline_exceeded", "DEADLINE_EXCEEDED"),
    GenerationFailed: ErrorReport(500, "server_error", "generation_failed", "INTERNAL"),
    EndpointFailed: ErrorReport(502, "server_error", "endpoint_failed", "UNAVAILABLE"),
    StoreFailed: ErrorReport(503, "server_error", "store_failed", "UNAVAILABLE"),
    StartError: ErrorReport(503, "server_error", "not_ready", "UNAVAILABLE"),
    AtelierError: ErrorReport(500, "server_error", "internal_error", "INTERNAL"),
}


def report(error: BaseException) -> ErrorReport:
    """The row of `REPORTS` for the error's nearest class; anything unknown is an internal error."""
    for cls in type(error).__mro__:
        if cls in REPORTS:
            return REPORTS[cls]
    return REPORTS[AtelierError]
