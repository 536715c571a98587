"""The cpu target, really built and run as OpenShift runs it: arbitrary UID, group 0, no rights,
read-only root."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import free_port
from tests.image.build import IMAGE, Builder, missing_tools, run, store_folder
from tests.manifests.rendering import ROOT, merged_container, needs_kubectl, objects

pytestmark = needs_kubectl

UID = 1000680000
PLAIN = (
    "--network",
    "host",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=4096:4096",
    "--no-healthcheck",
)
"""The test machine itself is confined: no network of its own, no limits above its own, no systemd
for health checks."""
HARDENED = (
    *PLAIN,
    *(
        "--user",
        f"{UID}:0",
        "--passwd=false",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges",
        "--read-only",
    ),
)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if reason := missing_tools():
        print(f"the image is not built here: {reason}")
        pytest.skip(reason)
    made = Builder(store_folder(tmp_path_factory.mktemp("image")))
    try:
        made.base_image()
        made.build("cpu")
        yield made
    finally:
        made.clean()


class Running:
    """A container of the image with the command line, environment and volumes of the dev
    overlay."""

    def __init__(self, builder: Builder) -> None:
        self.podman = builder.podman
        self.port = free_port()
        self.container = merged_container(objects("overlays/dev"))
        mounts = [mount["mountPath"] for mount in self.container["volumeMounts"]]
        volumes = [word for path in mounts for word in ("--tmpfs", f"{path}:rw,mode=1777")]
        variables = [
            word
            for entry in self.container["env"]
            for word in ("--env", f"{entry['name']}={entry['value']}")
        ]
        ports = [f"--http_port={self.port}", f"--grpc_port={free_port()}"]
        command = [
            *self.podman,
            "run",
            "--detach",
            "--name",
            "served",
            *HARDENED,
            *volumes,
            *variables,
            "--env",
        ]
        run(*command, "OMP_NUM_THREADS=1", IMAGE, *self.container["args"], *ports)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def log(self) -> str:
        done = subprocess.run([*self.podman, "logs", "served"], capture_output=True, text=True)
        return done.stdout + done.stderr

    def wait_ready(self, seconds: float = 180) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            try:
                if (
                    httpx.get(
                        self.url(self.container["startupProbe"]["httpGet"]["path"])
                    ).status_code
                    == 200
                ):
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        pytest.fail(
            f"the container is not ready after {seconds} s:\n{self.log()[-4000:]}", pytrace=False
        )

    def draw(self, **fields: Any) -> httpx.Response:
        body = {"instances": [{"prompt": "a red circle", "seed": 7, **fields}]}
        return httpx.post(self.url("/v1/models/shapes:predict"), json=body, timeout=120)

    def execute(self, *words: str) -> str:
        return run(*self.podman, "exec", "served", *words)


@pytest.fixture(scope="module")
def served(builder: Builder) -> Iterator[Running]:
    running = Running(builder)
    running.wait_ready()
    yield running
    subprocess.run([*running.podman, "rm", "--force", "--time", "1", "served"], capture_output=True)


def test_it_serves_the_built_in_model(served: Running) -> None:
    answer = served.draw()
    assert answer.status_code == 200, answer.text
    [prediction] = answer.json()["predictions"]
    assert prediction["seed"] == 7
    assert base64.b64decode(prediction["image"]["b64"]).startswith(b"\x89PNG\r\n\x1a\n")


def test_it_runs_as_a_user_that_the_image_does_not_know(served: Running) -> None:
    assert served.execute("id", "-u").strip() == str(UID)
    assert served.execute("id", "-g").strip() == "0"
    assert str(UID) not in served.execute("cat", "/etc/passwd").split(":")
    done = subprocess.run(
        [*served.podman, "exec", "served", "touch", "/opt/x"], capture_output=True, text=True
    )
    assert "Read-only file system" in done.stderr


def test_a_c_compiler_and_libnuma_are_there_for_triton(served: Running) -> None:
    program = "#include <Python.h>\nint main(void) { return 0; }"
    include = served.execute(
        "python3", "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"
    ).strip()
    script = f"printf '{program}' | gcc -x c -I{include} -o /tmp/a - && /tmp/a"
    served.execute("sh", "-c", script.replace("\n", "\\n"))
    served.execute("python3", "-c", "import ctypes; ctypes.CDLL('libnuma.so.1')")


def test_a_step_of_the_pipeline_runs_in_it(served: Running) -> None:
    """The quality gate as the compiled pipeline starts it: its command, its PATH, its inputs, and a
    file for its outputs."""
    pipeline, *_ = yaml.safe_load_all(
        (ROOT / "pipelines/atelier_training/dreambooth/pipeline.yaml").read_text()
    )
    container = pipeline["deploymentSpec"]["executors"]["exec-check-quality"]["container"]
    variables = [f"{entry['name']}={entry['value']}" for entry in container["env"]]

    def judge(found: float) -> subprocess.CompletedProcess[str]:
        inputs = {"parameterValues": {"scores": {"subject": found}, "gate": "subject>=0.8"}}
        given = json.dumps({"inputs": inputs, "outputs": {"outputFile": "/tmp/outputs.json"}})
        arguments = [word.replace("{{$}}", given) for word in container["args"]]
        command = [
            *served.podman,
            "exec",
            "served",
            "env",
            *variables,
            *container["command"],
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    good = judge(0.9)
    assert good.returncode == 0, good.stdout + good.stderr
    poor = judge(0.5)
    assert poor.returncode != 0
    assert "subject" in poor.stdout + poor.stderr


def test_the_health_check_asks_the_right_port(builder: Builder, served: Running) -> None:
    command = builder.inspect()["config"]["Healthcheck"]["Test"]
    assert command[0] == "CMD"
    assert ":8080/v2/health/live" in command[-1]
    served.execute(*[word.replace(":8080", f":{served.port}") for word in command[1:]])


def test_the_image_says_what_it_is_and_runs_without_root_by_default(builder: Builder) -> None:
    config = builder.inspect()["config"]
    assert config["User"] == "1001:0"
    assert config["Entrypoint"] == ["atelier"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Labels"]["org.opencontainers.image.version"] == "0.0.test"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_no_layer_holds_a_cache_a_wheel_or_a_configuration_of_the_builder(builder: Builder) -> None:
    as_root = [*builder.podman, "run", "--rm", *PLAIN, "--user", "0", "--entrypoint"]
    wanted = (
        "-name",
        "*.whl",
        "-o",
        "-path",
        "*/.cache/pip",
        "-o",
        "-path",
        "/etc/pip.conf",
        "-size",
        "+0",
    )
    found = run(*as_root, "find", IMAGE, "/", "-xdev", "(", *wanted, ")", "-print")
    # Debian's python3-venv brings pip as a wheel.
    assert [
        path for path in found.splitlines() if not path.startswith("/usr/share/python-wheels/")
    ] == []


def test_a_model_is_checked_before_it_is_baked_in(
    builder: Builder, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """containers/check_load.sh, which the prewarmed target runs: good weights pass, damaged ones
    stop the build."""
    script = Path(__file__).parents[2] / "containers/check_load.sh"
    mounts = ["--volume", f"{script}:/check:ro"]
    for name in ("good", "bad"):
        folder = tmp_path / name
        shutil.copytree(tiny_checkpoint, folder)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        mounts += ["--volume", f"{folder}:/{name}:ro"]
    weights = next((tmp_path / "bad").glob("vae/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    for folder, code in (("/good", 0), ("/bad", 1)):
        port = str(free_port())
        options = [
            *HARDENED,
            *mounts,
            "--tmpfs",
            "/tmp:rw,mode=1777",
            "--tmpfs",
            "/cache:rw,mode=1777",
            "--env",
        ]
        command = [
            *builder.podman,
            "run",
            "--rm",
            *options,
            f"CHECK_PORT={port}",
            "--entrypoint",
            "bash",
            IMAGE,
        ]
        done = subprocess.run([*command, "/check", folder, "120"], capture_output=True, text=True)
        assert done.returncode == code, f"{folder}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert f"{folder} {'loads' if code == 0 else 'does not load'}" in done.stdout + done.stderr


def test_sigterm_lets_the_running_request_finish_and_ends_with_0(served: Running) -> None:
    """Last: it ends the container."""
    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(served.draw, num_inference_steps=100, max_sequence_length=8)
        while (
            "atelier_queue_depth 0.0" in httpx.get(served.url("/metrics")).text
            and not drawing.done()
        ):
            time.sleep(0.02)
        run(*served.podman, "kill", "--signal", "TERM", "served")
        assert drawing.result().status_code == 200
    assert run(*served.podman, "wait", "served").strip() == "0", served.log()[-3000:]
