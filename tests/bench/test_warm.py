"""`atelier warm`, by hand and as the hook of the component engine-vllm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from atelier.bench.warming import NotWarm, WarmTarget
from atelier.cli.main import app
from atelier.cli.warm import lengths_of
from atelier.errors import SettingsError
from tests.bench.conftest import Engines
from tests.conftest import free_port
from tests.manifests.rendering import needs_kubectl, objects, of_kind
from tests.text.running import Server


def test_prompts_of_all_lengths_run_and_one_too_long_is_told(scenes: Server) -> None:
    words = ["warm", f"{scenes.url}/v1", "--prompt-tokens", "900,100,9000", "--api-key", "key"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines] == ["100", "900", "9000"]
    counted = [int(re.search(r": (\d+) tokens", line)[1]) for line in lines[:2]]  # type: ignore[index]
    assert counted == pytest.approx([100, 900], rel=0.15)
    assert "context holds 2048" in lines[2]


def test_it_waits_until_the_server_is_ready(engines: Engines) -> None:
    with pytest.raises(NotWarm, match=r"was not ready within 0\.5 s"):
        WarmTarget(f"127.0.0.1:{free_port()}").wait(0.5)
    endpoint = WarmTarget(engines.url, model="steady")
    endpoint.wait(5)
    assert [done.wanted for done in endpoint.warm([20, 10])] == [10, 20]
    with pytest.raises(NotWarm, match="not other"):
        list(WarmTarget(engines.url, model="other").warm([10]))
    with pytest.raises(NotWarm, match="answered 429"):
        list(WarmTarget(engines.url, model="busy").warm([10]))


@pytest.mark.parametrize("text", ["", "50,many", "0"])
def test_a_bad_length_is_named(text: str) -> None:
    with pytest.raises(SettingsError, match="--prompt-tokens"):
        lengths_of(text)


@needs_kubectl
def test_the_hook_of_the_component_warms_the_server(scenes: Server, tmp_path: Path) -> None:
    """Its command as rendered, with this server's address and a file for the container's log."""
    (runtime,) = of_kind(objects("overlays/glm-4.7-flash"), "ServingRuntime")
    shell, flag, line = runtime["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"][
        "command"
    ]
    log = tmp_path / "log"
    log.touch()  # the hook writes when its background has begun
    line = line.replace("http://127.0.0.1:8080", scenes.url).replace("/proc/1/fd/1", str(log))
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    begun = time.monotonic()
    subprocess.run(
        [shell, flag, line],
        env=os.environ | {"PATH": programs, "API_KEYS": "key,other"},
        check=True,
    )
    assert time.monotonic() - begun < 2  # the kubelet waits for it before it probes
    while time.monotonic() - begun < 60 and log.read_text().count(" s\n") < 4:
        time.sleep(0.2)
    assert re.match(r"50 tokens asked: \d+ tokens", log.read_text())
