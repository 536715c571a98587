"""Workers die, hang and lose their device; who asked for a picture notices nothing but time."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from atelier.workers.image_front import memory_of
from atelier.workers.worker import CPU_NICENESS
from tests.conftest import ROOT, Server, free_port
from tests.gallery import Pixels, difference, pixels
from tests.processes import Executed

STEPS = 20
PROMPT = "a red circle"


def predict(server: Server, **instance: Any) -> httpx.Response:
    body = {"instances": [{"prompt": PROMPT, "num_inference_steps": STEPS} | instance]}
    url = f"{server.url}/v1/models/{server.model}:predict"
    return httpx.post(url, json=body, timeout=120)


def picture(answer: httpx.Response) -> Pixels:
    assert answer.status_code == 200, answer.text
    return pixels(base64.b64decode(answer.json()["predictions"][0]["image"]["b64"]))


def workers(server: Server) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server.url}/v2/models/{server.model}", timeout=10)
    listed: list[dict[str, Any]] = answer.json()["properties"]["workers"]
    return listed


def wait_for(what: Any, seconds: float = 180) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.1)


@contextmanager
def faulty_server(folder: Path, checkpoint: Path, **settings: str) -> Iterator[Server]:
    """A server whose workers hang, die or lose their device when the prompt says so."""
    ports = free_port(), free_port()
    log = folder / "log"
    given = {"DEVICE": "cpu", "MODEL_ID": str(checkpoint), "MODEL_NAME": "tiny"}
    given |= {"LOST_ONCE": str(folder / "lost")} | settings
    arguments = ["serve", f"--http_port={ports[0]}", f"--grpc_port={ports[1]}"]
    process = Executed("tests.workers.faulty", arguments, given, log)
    url, grpc = f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    try:
        yield Server(url, grpc, "tiny", log, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="module")
def pair(start_server: Any, tiny_checkpoint: Path) -> Iterator[Server]:
    with start_server(model_id=str(tiny_checkpoint), data_parallel_size="2") as running:
        wait_for(lambda: [one["state"] for one in workers(running)] == ["ready", "ready"])
        yield running


def kill_while_drawing(server: Server) -> list[httpx.Response]:
    """Eight pictures at once, and SIGKILL to a worker that is at work on one."""
    with ThreadPoolExecutor(8) as pool:
        asked: list[Future[httpx.Response]] = [
            pool.submit(predict, server, seed=seed, num_inference_steps=60) for seed in range(8)
        ]
        wait_for(lambda: any(one["drawing"] for one in workers(server)))
        victim = next(one for one in workers(server) if one["requests"])
        os.kill(victim["pid"], signal.SIGKILL)
        return [each.result() for each in asked]


@pytest.mark.parametrize("size", ["1", "2"])
def test_a_killed_workers_pictures_come_all_the_same(
    start_server: Any, tiny_checkpoint: Path, size: str
) -> None:
    with start_server(model_id=str(tiny_checkpoint), data_parallel_size=size) as server:
        drawn = kill_while_drawing(server)
        wait_for(lambda: all(one["state"] == "ready" for one in workers(server)))
        for seed, answer in enumerate(drawn):
            lone = picture(predict(server, seed=seed, num_inference_steps=60))
            assert difference(picture(answer), lone) <= 1
        ends = [line for line in metrics(server) if line.startswith("atelier_worker_ends_total")]
        assert sum(float(line.split()[-1]) for line in ends) == 1


def metrics(server: Server) -> list[str]:
    return httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()


def test_requests_are_spread_over_the_workers(pair: Server) -> None:
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(predict, pair, seed=seed) for seed in range(6)]
        assert all(each.result().status_code == 200 for each in asked)
    busy = {
        line.partition('worker="')[2].partition('"')[0]
        for line in metrics(pair)
        if line.startswith("atelier_step_seconds_count") and 'stage="denoise"' in line
    }
    assert busy == {"0", "1"}
    assert "atelier_workers_ready 2.0" in metrics(pair)


def test_memory_that_two_workers_share_is_counted_once(pair: Server) -> None:
    told = {line.split("{")[0].split()[0]: line.split()[-1] for line in metrics(pair)}
    seen = sum(float(told[f"atelier_device_memory_{kind}_bytes"]) for kind in ("used", "free"))
    assert 0 < seen <= psutil.virtual_memory().total


def test_the_metadata_lists_workers_with_device_and_state(pair: Server) -> None:
    listed = workers(pair)
    assert [one["worker"] for one in listed] == [0, 1]
    assert {one["device"] for one in listed} == {"cpu"}
    assert len({one["pid"] for one in listed}) == 2


def test_workers_on_a_processor_give_way_to_the_front(pair: Server) -> None:
    def niceness(process: int) -> set[int]:
        threads = [int(one.name) for one in Path(f"/proc/{process}/task").iterdir()]
        return {os.getpriority(os.PRIO_PROCESS, one) for one in threads}

    assert [niceness(one["pid"]) for one in workers(pair)] == [{CPU_NICENESS}, {CPU_NICENESS}]
    assert niceness(pair.process.pid) == niceness(os.getpid())


def test_a_worker_that_stands_still_is_replaced(start_server: Any, tiny_checkpoint: Path) -> None:
    with start_server(model_id=str(tiny_checkpoint), hang_seconds="2") as server:
        lone = picture(predict(server, seed=3))
        stopped = workers(server)[0]["pid"]
        os.kill(stopped, signal.SIGSTOP)
        assert difference(picture(predict(server, seed=3)), lone) <= 1
        assert workers(server)[0]["pid"] != stopped


def test_a_call_that_never_ends_is_replaced_and_deadlines_hold(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with faulty_server(tmp_path, tiny_checkpoint, HANG_SECONDS="4") as server:
        server.wait_ready()
        began = time.monotonic()
        late = predict(server, prompt="hang", timeout=2)
        assert (late.status_code, time.monotonic() - began < 3) == (504, True), late.text
        hung = workers(server)[0]["pid"]
        picture(predict(server, seed=3))
        assert workers(server)[0]["pid"] != hung


def test_a_lost_device_leads_to_a_new_worker(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with faulty_server(tmp_path, tiny_checkpoint) as server:
        server.wait_ready()
        before = workers(server)[0]["pid"]
        drawn = picture(predict(server, prompt="lost", seed=5))
        assert workers(server)[0]["pid"] != before
        assert difference(drawn, picture(predict(server, prompt="lost", seed=5))) <= 1


def test_a_request_that_ends_two_workers_is_not_tried_again(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with faulty_server(tmp_path, tiny_checkpoint, MAX_BATCH_SIZE="1") as server:
        server.wait_ready()
        answer = predict(server, prompt="die")
        assert answer.status_code == 500
        assert "two workers ended" in answer.text
        wait_for(lambda: workers(server)[0]["state"] == "ready")
        picture(predict(server, seed=1))


def test_repeated_crashes_end_the_process_with_a_code(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with faulty_server(tmp_path, tiny_checkpoint) as server:
        server.wait_ready()
        ends = time.monotonic() + 60
        while server.process.poll() is None and time.monotonic() < ends:
            try:
                predict(server, prompt="die")
            except httpx.TransportError:
                break
            time.sleep(0.2)
        assert server.process.wait(20) == 1


def test_sigterm_during_a_slow_load_ends_within_five_seconds(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with faulty_server(tmp_path, tiny_checkpoint, SLOW_FETCH="60") as server:
        wait_for(lambda: "fetching" in server.log.read_text())
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)
        assert time.monotonic() - began < 5


def test_no_worker_survives_its_front(start_server: Any, tiny_checkpoint: Path) -> None:
    with pytest.raises(AssertionError), start_server(model_id=str(tiny_checkpoint)) as server:
        pid = workers(server)[0]["pid"]
        server.process.kill()
    wait_for(lambda: not alive(pid), 10)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("model", ["builtin/shapes", "builtin/scenes"])
def test_the_front_imports_no_torch(model: str) -> None:
    code = (
        "import sys\n"
        "from fastapi import FastAPI\n"
        "from atelier.serving import assembly, server\n"
        "from atelier.settings import load_settings\n"
        "from atelier.telemetry import Metrics\n"
        "assembly.serve_kind(load_settings(model_id=sys.argv[1]), FastAPI(), Metrics())\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'peft'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)\n"
    )
    paths = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "pipelines")])
    done = subprocess.run(
        [sys.executable, "-c", code, model],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_gpu_is_counted_and_a_processor_once() -> None:
    """Each worker sees its own GPU alone, as the first one."""
    assert memory_of([(0, "cuda:0", (3, 5)), (1, "cuda:0", (1, 7))]) == (4, 12)
    assert memory_of([(0, "cpu", (3, 5)), (1, "cpu", (3, 5))]) == (3, 5)
    assert memory_of([(0, "cuda:0", (3, 5)), (1, "cuda 1", (0, 0))]) == (3, 5)
