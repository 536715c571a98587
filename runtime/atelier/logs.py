"""Log lines as text or JSON, each with the id of the request it belongs to. Prompts are not logged
unless LOG_PROMPTS."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

from atelier.settings import Settings

_request_id: ContextVar[str] = ContextVar("request_id", default="")

PROBES = ("GET /health", "GET /metrics", "GET /v2/health", "GET / ", "/ready HTTP")


def current_request_id() -> str:
    """The id of the request being handled, or empty."""
    return _request_id.get()


def set_request_id(request_id: str) -> None:
    """Mark what the current task does from here on as this request's."""
    _request_id.set(request_id)


def set_up(settings: Settings, worker: str = "") -> None:
    """Send every logger's lines to standard error in the form that LOG_FORMAT names.

    Lines of a worker process say which one it is. Call before the heavy libraries are imported:
    their remarks on packages that are not needed here are silenced.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(worker) if settings.log_format == "json" else _Text(worker))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.access").addFilter(
        lambda record: not any(p in record.getMessage() for p in PROBES)
    )
    logging.captureWarnings(
        True
    )  # Python's warnings become lines of this log, and those of libraries are left out
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    for chatty in ("httpx", "httpcore", "botocore", "urllib3", "kserve.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return getattr(record, "fields", {})


class _Text(logging.Formatter):
    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = f" worker {worker}" if worker else ""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        name = record.name.removeprefix("atelier.")
        request = getattr(record, "request_id", "") or current_request_id()
        told = "".join(f" {key}={value}" for key, value in _fields(record).items())
        line = (
            f"{when} {record.levelname:<7}{self._worker} {name}:"
            f" {record.getMessage()}{told}{f' [{request}]' if request else ''}"
        )
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(logging.Formatter):
    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request_id", "") or current_request_id():
            line["request_id"] = request
        if self._worker:
            line["worker"] = self._worker
        line |= _fields(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
