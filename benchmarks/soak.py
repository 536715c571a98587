"""A soak: good requests of every protocol among cancels, bad bodies, slow clients, deadlines,
devices short of memory, and workers that are killed.

    python -m benchmarks.soak [--model builtin/shapes] [--seconds 180] [--clients 12] [--side 128]

Stops by itself, uses loopback only, and ends with code 1 if a request leaked, an answer had an
undocumented code, memory grew, or a good request was never served. The latency of the probes
meanwhile is reported.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.arms import server_process
from benchmarks.soak_clients import GOOD, KEY, KINDS, SoakClient, SoakReport

LIMITS = {
    "api_keys": KEY,
    "max_body_bytes": "65536",
    "max_queue_size": "10",
    "max_steps": "60",
    "log_level": "error",
    "data_parallel_size": "2",
}
WORKERS_COME_BACK_S = 90


async def soak(
    url: str, seconds: float, clients: int, side: int, seed: int = 0, kill_every: float = 30
) -> SoakReport:
    """Let `clients` behave at random for `seconds`, killing a worker every `kill_every` of them,
    then let the server come to rest, and say what was seen."""
    report = SoakReport()
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=url, timeout=120, headers=headers) as http:
        crowd = [
            SoakClient(http, random.Random(seed + index), side, report) for index in range(clients)
        ]
        ends = time.monotonic() + seconds

        async def behave(client: SoakClient) -> None:
            while time.monotonic() < ends:
                action: Callable[[], Awaitable[None]] = getattr(client, client.dice.choice(KINDS))
                try:
                    await action()
                except (httpx.TransportError, OSError, IndexError) as error:
                    report.faults.append(f"{action.__name__}: no answer: {error!r}")

        async def weigh() -> None:
            await asyncio.sleep(seconds / 2)
            report.memory = await resident(http), 0

        async def probe() -> None:
            # In a process of its own, as a kubelet is: the crowd's own turns are not the server's.
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                loop = asyncio.get_running_loop()
                asked = url, headers, list(report.probes), seconds
                report.probes = await loop.run_in_executor(process, probed, *asked)

        async def kill() -> None:
            while kill_every and time.monotonic() + kill_every < ends:
                await asyncio.sleep(kill_every)
                serving = [one for one in await workers(http) if one["state"] == "ready"]
                if len(serving) > 1:
                    os.kill(crowd[0].dice.choice(serving)["pid"], signal.SIGKILL)
                    report.kills += 1

        await asyncio.gather(probe(), weigh(), kill(), *map(behave, crowd))
        await _rest(http, report)
        # The good requests that chance left out, or refused, must be served now that it is quiet.
        for kind in GOOD:
            for _ in range(5):
                if not report.answers[kind, 200]:
                    await getattr(crowd[0], kind)()
    return report


def probed(
    url: str, headers: dict[str, str], paths: list[str], seconds: float
) -> dict[str, list[float]]:
    """Ask for each path in turn, and return what each answer took, in seconds."""
    seen: dict[str, list[float]] = {path: [] for path in paths}
    ends = time.monotonic() + seconds
    with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
        while time.monotonic() < ends:
            for path in paths:
                began = time.perf_counter()
                http.get(path).raise_for_status()
                seen[path].append(time.perf_counter() - began)
            time.sleep(0.05)
    return seen


async def _rest(http: httpx.AsyncClient, report: SoakReport) -> None:
    """Wait for an empty queue and all workers, and take the last figures."""
    ends = time.monotonic() + WORKERS_COME_BACK_S
    while time.monotonic() < ends:
        found = _metrics((await http.get("/metrics")).text)
        back = all(one["state"] == "ready" for one in await workers(http))
        if found["atelier_queue_depth"] == 0 and back:
            break
        await asyncio.sleep(0.1)
    report.depth = found["atelier_queue_depth"]
    # A worker that was started again has caches to fill: what a leak is can then not be told.
    report.memory = report.memory[0], await resident(http) if not report.kills else 0
    report.outcomes = {
        name: n for name, n in found.items() if name.startswith("atelier_requests_total")
    }
    report.shortages = found["atelier_out_of_memory_total"]


async def workers(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The server's workers, as the model's metadata has them."""
    about = (await http.get("/v2/models/model")).json()
    listed: list[dict[str, Any]] = about["properties"]["workers"]
    return listed


async def resident(http: httpx.AsyncClient) -> float:
    """Bytes of memory of the front and its workers."""
    front = _metrics((await http.get("/metrics")).text)["process_resident_memory_bytes"]
    pages = 0
    for one in await workers(http):
        pages += _pages(one["pid"])
    return front + pages * os.sysconf("SC_PAGE_SIZE")


def _pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except FileNotFoundError:  # it has just been killed
        return 0


def _metrics(text: str) -> dict[str, float]:
    samples = [
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    ]
    return {s.name + "".join(f" {v}" for v in s.labels.values()): s.value for s in samples}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin/shapes")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--kill-every", type=float, default=30, help="seconds; 0: no worker")
    options = parser.parse_args()
    with server_process("benchmarks.faulty", model_id=options.model, **LIMITS) as url:
        report = asyncio.run(
            soak(url, options.seconds, options.clients, options.side, kill_every=options.kill_every)
        )
    for (kind, code), count in sorted(report.answers.items()):
        print(f"{kind:10} {code} {count}")
    print("\n".join(f"{name} {count:g}" for name, count in sorted(report.outcomes.items())))
    print(f"{report.shortages:g} calls ran out of memory, {report.kills} workers were killed")
    print(
        f"memory {report.memory[0] / 2**20:.0f} MiB half-way, {report.memory[1] / 2**20:.0f} MiB at"
        " the end"
    )
    for path in report.probes:
        print(
            f"{path} p50 {statistics.median(report.probes[path]) * 1e3:.1f} ms, p99"
            f" {report.p99(path) * 1e3:.1f} ms"
        )
    sys.exit("\n".join(report.problems()) or None)


if __name__ == "__main__":
    main()
