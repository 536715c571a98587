"""Several GPUs on one picture, and on many: groups and workers of the real server, over HTTP.

    PYTHONPATH=runtime:. python -m benchmarks.groups --seconds 530 --out results
    PYTHONPATH=runtime:. python -m benchmarks.groups --device cpu --model tiny --seconds 120

Published shapes with random weights at 1024, 28 steps. For each arm a server is started: start to
ready, the first picture and the median of three alone, pictures a second with four requests a
device in flight. At last a worker and a follower are killed in mid-picture: every picture has to
come, and to equal the one of the same seed before. One JSON line a figure, the most important ones
first. What is left when the seconds are over is not begun; each arm says what it is about to do.
The servers' logs go to the folder `--out`; the end of one is printed when its server fails.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from benchmarks.arms import server_process
from benchmarks.gpu_served import build
from benchmarks.random_models import SUBJECTS
from tests.tiny_pipelines import flux_1

MULTICAST_OFF = {
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}
"""NVLink multicast can put GPUs that a host shares out of service; no figure here needs it."""

IN_FLIGHT = 4
"""Requests a device, where throughput is measured."""

TELLING = ("sharing: ", "graphs: ", "group: ", "follower: ", " ERROR", "image_work: ", "warmup: ")
"""Lines of a server's log that say what became of the group."""


@dataclass(frozen=True)
class GroupArm:
    """One server: `sequence` devices a group, `data` groups, and what is done with it."""

    model: str
    sequence: int = 1
    data: int = 1
    quantization: str = "none"
    shards: str = "auto"
    alone: bool = True
    many: bool = False
    kill: str = ""

    @property
    def devices(self) -> int:
        return self.sequence * self.data

    @property
    def told(self) -> dict[str, Any]:
        """What every figure of this arm says of it."""
        names = ("model", "quantization", "shards", "sequence", "data")
        return {name: getattr(self, name) for name in names}


def arms(models: Sequence[str], devices: int, fp8: bool) -> Iterator[GroupArm]:
    """What is measured on so many devices, the most important first."""
    sizes = [size for size in (1, 2, 4, 8) if size <= devices]
    first, last = models[0], models[-1]
    yield GroupArm(first, many=True)
    yield from (GroupArm(first, sequence=size) for size in sizes[1:])
    if fp8:
        yield from (GroupArm(first, sequence=size, quantization="fp8") for size in sizes)
    yield from (GroupArm(first, data=size, alone=False, many=True) for size in sizes[1:])
    if last != first:
        yield GroupArm(last, many=True)
    for size in sizes[1:]:
        kills = size == 2
        if last != first or kills:
            yield GroupArm(last, sequence=size, kill="follower" if kills else "")
            yield GroupArm(last, data=size, alone=False, many=True, kill="worker" if kills else "")
    if devices >= 4:
        yield GroupArm(first, sequence=2, data=2, many=True)
    yield from (GroupArm(first, sequence=size, shards="true") for size in sizes[1:])


class GroupClient:
    """Draws through one arm's server, and says what it took."""

    def __init__(self, url: str, arm: GroupArm, side: int, steps: int, ends: float) -> None:
        self.url, self.arm, self.side, self.steps, self.ends = url, arm, side, steps, ends
        self._http = httpx.Client(timeout=300)  # making one takes 30 ms, which no picture takes

    def draw(self, seed: int) -> tuple[float, str]:
        """Seconds of one picture, and the picture."""
        instance = {
            "prompt": f"picture {seed} of a boat",
            "seed": seed,
            "width": self.side,
            "height": self.side,
            "num_inference_steps": self.steps,
        }
        began = time.monotonic()
        answer = self._http.post(
            f"{self.url}/v1/models/model:predict", json={"instances": [instance]}
        )
        if answer.status_code != 200:
            raise RuntimeError(f"HTTP {answer.status_code}: {answer.text[:500]}")
        picture: str = answer.json()["predictions"][0]["image"]["b64"]
        return time.monotonic() - began, picture

    def alone(self) -> None:
        first, _ = self.draw(100)
        self.draw(101)
        each = [self.draw(seed)[0] for seed in range(3)]
        say(self.arm, first_s=first, alone_s=statistics.median(each), each_s=each)

    def many(self) -> None:
        """Four requests a device, twice: in the first round row counts are tried."""
        count = IN_FLIGHT * self.arm.devices
        with ThreadPoolExecutor(count) as pool:
            for round_name in ("first", "second"):
                if time.monotonic() > self.ends:
                    return
                began = time.monotonic()
                list(pool.map(self.draw, range(count)))
                rate = count / (time.monotonic() - began)
                say(self.arm, in_flight=count, round=round_name, pictures_per_s=rate)

    def kill(self) -> None:
        """SIGKILL to a process while pictures are drawn; how long those take, and that they equal
        the ones before."""
        seeds = range(self.arm.devices)
        with ThreadPoolExecutor(len(seeds)) as pool:
            before = list(pool.map(self.draw, seeds))
            began = time.monotonic()
            asked = [pool.submit(self.draw, seed) for seed in seeds]
            os.kill(self._victim(asked), signal.SIGKILL)
            after = [each.result() for each in asked]
        pairs = zip(before, after, strict=True)
        worst = max(apart(one, other) for (_, one), (_, other) in pairs)
        figures = {"pictures": len(after), "largest_difference_of_255": worst}
        say(self.arm, killed=self.arm.kill, all_there_s=time.monotonic() - began, **figures)
        while time.monotonic() < self.ends:
            if all(one["state"] == "ready" for one in self.workers()):
                say(self.arm, killed=self.arm.kill, replaced_s=time.monotonic() - began)
                return
            time.sleep(0.2)

    def _victim(self, asked: list[Future[tuple[float, str]]]) -> int:
        """A process that is at work on one of the pictures."""
        while not any(each.done() for each in asked):
            for worker in self.workers():
                if any(one["step"] > 2 for one in worker["drawing"]):
                    follower = self.arm.kill == "follower"
                    pid: int = worker["followers"][0] if follower else worker["pid"]
                    return pid
            time.sleep(0.02)
        raise RuntimeError("a picture was there before a process could be killed: more --steps")

    def workers(self) -> list[dict[str, Any]]:
        about = httpx.get(f"{self.url}/v2/models/model", timeout=30).json()
        listed: list[dict[str, Any]] = about["properties"]["workers"]
        return listed

    def wait_for_all(self) -> None:
        """Ready means that one worker is; a figure is about all of them."""
        while time.monotonic() < self.ends:
            listed = self.workers()
            if len(listed) == self.arm.data and all(one["state"] == "ready" for one in listed):
                return
            time.sleep(0.2)


def apart(one: str, other: str) -> int:
    """The largest difference of two pictures, in grey levels; batches round differently."""
    pixels = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each)))).astype(int)
        for each in (one, other)
    ]
    return int(np.abs(pixels[0] - pixels[1]).max())


def say(arm: GroupArm, **figures: Any) -> None:
    rounded = {name: _rounded(value) for name, value in figures.items()}
    print(json.dumps(arm.told | rounded), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def run(arm: GroupArm, folder: Path, options: argparse.Namespace, log: Path, ends: float) -> None:
    """One arm, from the start of its server to the last figure."""
    variables = {
        "model_id": str(folder),
        "cache_dir": str(options.folder / "cache"),
        "device": options.device,
        "sequence_parallel_size": str(arm.sequence),
        "data_parallel_size": str(arm.data),
        "quantization": arm.quantization,
        "shard_weights": arm.shards,
        "log_level": "info",
        "cuda_visible_devices": ",".join(map(str, range(arm.devices))),
    }
    began = time.monotonic()
    with server_process(log=log, patience_s=max(1.0, ends - began), **variables) as url:
        client = GroupClient(url, arm, options.side, options.steps, ends)
        first_s = time.monotonic() - began
        client.wait_for_all()
        say(arm, first_worker_ready_s=first_s, ready_s=time.monotonic() - began)
        for wanted, work in ((arm.alone, client.alone), (arm.many, client.many),
                             (arm.kill, client.kill)):  # fmt: skip
            if wanted and time.monotonic() < ends:
                work()
        devices = [one.get("devices", one["device"]) for one in client.workers()]
        say(arm, used_mib=used_mib(), devices=devices)


def used_mib() -> list[str]:
    """What each GPU has in use, as its driver says."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        return []


def told_in(log: Path) -> list[str]:
    """The lines that say how calls were shared and recorded, each once."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    chosen = [line.split(" ", 1)[-1] for line in lines if any(word in line for word in TELLING)]
    return list(dict.fromkeys(chosen))[:40]


def folder_of(model: str, root: Path) -> Path:
    if model == "tiny":
        return flux_1(root) if not (root / "flux-1").exists() else root / "flux-1"
    return build(model, root)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = [*SUBJECTS, "tiny"]
    parser.add_argument("--model", action="append", choices=models, help="default: FLUX and SD 3.5")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--devices", type=int, help="default: all that are visible; 2 on a CPU")
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/models"))
    parser.add_argument("--out", type=Path, default=Path("/tmp/groups"), help="for the logs")
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--only", default="", help="numbers of arms, comma-separated; --list")
    parser.add_argument("--list", action="store_true", help="say the arms and end")
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    on_gpu = options.device == "cuda"
    options.side = options.side or (1024 if on_gpu else 64)
    options.steps = options.steps or (28 if on_gpu else 100)
    os.environ.update({k: os.environ.get(k, v) for k, v in MULTICAST_OFF.items()})
    count = options.devices or (torch.cuda.device_count() if on_gpu else 2)
    chosen = options.model or ["flux1-dev", "sd35-medium"]
    planned = list(enumerate(arms(chosen, count, fp8=on_gpu)))
    if options.only:
        numbers = {int(one) for one in options.only.split(",")}
        planned = [(number, arm) for number, arm in planned if number in numbers]
    for number, arm in planned if options.list else []:
        print(number, arm)
    if not options.list:
        measure(planned, options, ends)


def measure(planned: list[tuple[int, GroupArm]], options: argparse.Namespace, ends: float) -> None:
    """All arms, as far as the time goes. One that fails is told, with the end of its log."""
    for folder in (options.folder, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for number, arm in planned:
        left = ends - time.monotonic()
        if left < 20:
            say(arm, number=number, skipped="the seconds are over")
            continue
        print(
            f"# {time.monotonic() - began:.0f} s: arm {number}: {arm}", file=sys.stderr, flush=True
        )
        log = options.out / f"server-{number}.log"
        try:
            run(arm, folder_of(arm.model, options.folder), options, log, ends)
        except (Exception, SystemExit) as error:
            say(arm, number=number, failed=f"{type(error).__name__}: {error}")
            end = log.read_text(errors="replace")[-3000:] if log.exists() else "no log"
            print(end, file=sys.stderr, flush=True)
        say(arm, number=number, log=told_in(log))


if __name__ == "__main__":
    main()
