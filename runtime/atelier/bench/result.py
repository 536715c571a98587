"""The result of a run as a document: figures, every record, and what is needed to repeat it."""

from __future__ import annotations

import datetime
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from atelier import __version__
from atelier.bench.comparison import Comparison
from atelier.bench.figures import RunFigures
from atelier.bench.load import OfferedLoad
from atelier.bench.record import Record
from atelier.bench.saturation import Saturation
from atelier.bench.slo import Slo
from atelier.bench.target import Target
from atelier.errors import SettingsError

FORMAT = "atelier-bench/1"
LIBRARIES = ("aiohttp", "orjson", "pydantic")


class Measured(BaseModel):
    """One level of load on one server. `tool` made the requests."""

    arm: str
    load: OfferedLoad
    figures: RunFigures
    records: list[Record]
    tool: str = "atelier"

    @property
    def title(self) -> str:
        """The server and the load, for a heading."""
        return f"{self.arm}: {self.load.title}"


class ServerFacts(BaseModel):
    """A server as it describes itself."""

    arm: str
    url: str
    model: str
    kind: str
    tokenizer: str
    facts: dict[str, Any]

    @classmethod
    def of(cls, arm: str, target: Target) -> ServerFacts:
        told = {"url": target.url, "model": target.model, "kind": target.kind}
        return cls(arm=arm, tokenizer=target.tokenizer, facts=target.facts, **told)


class Client(BaseModel):
    """Where and with what the run was made."""

    atelier: str
    python: str
    libraries: dict[str, str]
    machine: str
    processor: str
    cpus: int
    memory_bytes: int

    @classmethod
    def here(cls) -> Client:
        import os

        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            atelier=__version__,
            python=platform.python_version(),
            libraries={name: metadata.version(name) for name in LIBRARIES},
            machine=platform.platform(),
            processor=_processor(),
            cpus=os.cpu_count() or 1,
            memory_bytes=pages,
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


class BenchResult(BaseModel):
    """What `atelier bench` writes and `atelier bench compare` reads."""

    format: str = FORMAT
    created: datetime.datetime
    command: list[str]
    client: Client
    servers: list[ServerFacts]
    slo: Slo
    levels: list[Measured] = []
    comparisons: list[Comparison] = []
    saturation: Saturation | None = None
    notes: list[str] = []


def read(path: Path) -> BenchResult:
    """A result from its file.

    Raises:
        SettingsError: it is none.
    """
    try:
        found = BenchResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise SettingsError(
            f"{path} is no result of atelier bench: {where}: {fault['msg']}"
        ) from None
    if found.format != FORMAT:
        raise SettingsError(f"{path} has format {found.format!r}: this version reads {FORMAT}")
    return found
