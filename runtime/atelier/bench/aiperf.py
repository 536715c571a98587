"""AIPerf makes the requests: the load's bodies are given to it verbatim, and its records become
ours, so that figures, reports and comparisons are the same.

It runs from an environment of its own (`make engine-aiperf`), since its pins contradict ours.
Conversations, pictures, bursts and interleaving are not given to it: Atelier's own driver has them.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import orjson

from atelier.bench.bodies import Talk, conversations
from atelier.bench.driver import conversations_of
from atelier.bench.load import OfferedLoad
from atelier.bench.record import Record
from atelier.bench.target import Target, TargetError
from atelier.errors import SettingsError

EXPORT = "profile_export.jsonl"
SUMMARY = "profile_export_aiperf.json"
TOKENIZER: dict[str, Any] = {
    "tokenizer.json": {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    },
    "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
}
"""AIPerf loads a tokenizer though the server counts; this one needs no network."""


def check(load: OfferedLoad, target: Target) -> None:
    """Refuse what AIPerf is not asked to do.

    Raises:
        SettingsError: names the option.
    """
    refused = {
        "--turns": load.turns > 1,
        "--burst": load.burst > 1,
        "--trace": load.trace is not None,
        "pictures": target.kind == "pictures",
    }
    for name, given in refused.items():
        if given:
            raise SettingsError(f"--aiperf does not go with {name}: leave it out")


def command(program: Path, target: Target, load: OfferedLoad, folder: Path, key: str) -> list[str]:
    """The command line that makes `load`, with its bodies in `folder`/bodies.jsonl."""
    completions = load.scenario == "completion"
    words = [str(program), "profile", "--model", target.model, "--url", target.url]
    words += ["--endpoint-type", "completions" if completions else "chat", "--streaming"]
    words += ["--input-file", str(folder / "bodies.jsonl"), "--custom-dataset-type", "raw_payload"]
    words += ["--dataset-sampling-strategy", "sequential", "--use-server-token-count"]
    words += ["--tokenizer", str(folder / "tokenizer"), "--request-count", str(load.requests)]
    words += ["--no-gpu-telemetry", "--no-server-metrics"]
    words += ["--request-timeout-seconds", str(load.timeout), "--random-seed", str(load.seed)]
    words += ["--artifact-dir", str(folder / "out"), "--export-level", "records", "--ui", "none"]
    words += ["--benchmark-duration", str(load.seconds)]
    if load.warmup:
        words += ["--warmup-request-count", str(load.warmup)]
    if load.users is not None:
        words += ["--concurrency", str(load.users)]
    else:
        words += ["--request-rate", str(load.rate), "--arrival-pattern", "poisson"]
    return [*words, "--api-key", key] if key else words


async def measure(program: Path, target: Target, load: OfferedLoad, key: str = "") -> list[Record]:
    """Run AIPerf and read its records.

    Raises:
        SettingsError: the load is not for AIPerf.
        TargetError: AIPerf failed; the message has the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="atelier-aiperf-") as name:
        await run(program, target, load, Path(name), key)
        return read_records(Path(name) / "out" / EXPORT)


async def run(
    program: Path, target: Target, load: OfferedLoad, folder: Path, key: str = ""
) -> None:
    """Run AIPerf with everything it reads and writes in `folder`; its exports are in `out`.

    Raises:
        SettingsError, TargetError: as in `measure`.
    """
    check(load, target)
    count = conversations_of(load)
    before = load.model_copy(update={"seed": load.seed + 1_000_003})
    talks = await conversations(before, target, load.warmup, "warm") if load.warmup else []
    talks += await conversations(load, target, count)
    (folder / "bodies.jsonl").write_bytes(b"\n".join(map(_line, talks)) + b"\n")
    (folder / "tokenizer").mkdir()
    for name, body in TOKENIZER.items():
        (folder / "tokenizer" / name).write_bytes(orjson.dumps(body))
    words = command(program, target, load, folder, key)
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise SettingsError(
            f"--aiperf {program} cannot be run ({error}): `make engine-aiperf` installs one"
        ) from None
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        raise
    if process.returncode or not (folder / "out" / EXPORT).exists():
        raise TargetError(
            f"AIPerf ended with {process.returncode}: {output.decode(errors='replace')[-1500:]}"
        )


def _line(talk: Talk) -> bytes:
    return orjson.dumps(talk.turns[0])


def read_records(path: Path) -> list[Record]:
    """The measured requests of AIPerf's per-request export; its warm-up is left out."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines() if line]
    kept = [line for line in lines if line["metadata"]["phase_kind"] == "profiling"]
    kept.sort(key=lambda line: line["metadata"]["request_start_ns"])
    start = kept[0]["metadata"]["request_start_ns"] if kept else 0
    return [_record(index, line, start) for index, line in enumerate(kept)]


def _record(index: int, line: dict[str, Any], start: int) -> Record:
    metadata = line["metadata"]
    values = {name: one["value"] for name, one in (line.get("metrics") or {}).items()}
    record = Record(index=index, begun=(metadata["request_start_ns"] - start) / 1e9)
    record.seconds = (metadata["request_end_ns"] - metadata["request_start_ns"]) / 1e9
    if fault := line.get("error"):
        record.error = f"http {fault['code']}" if fault.get("code") else str(fault.get("type"))
        record.message = str(fault.get("message"))[:300]
        return record
    record.seconds = values.get("request_latency", record.seconds * 1000) / 1000
    if "time_to_first_token" in values:
        times = [values["time_to_first_token"] / 1000]
        for gap in values.get("inter_chunk_latency", []):
            times.append(times[-1] + gap / 1000)
        record.arrivals = times
    record.prompt_tokens = values.get("usage_prompt_tokens")
    record.output_tokens = values.get("usage_completion_tokens")
    record.cached_tokens = values.get("usage_prompt_cache_read_tokens")
    return record
