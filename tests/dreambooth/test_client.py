"""`atelier pipeline` against a server over TLS, through kfp's own client: what it sends, prints and
ends with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dreambooth.kfp_server import TOKEN, Pipelines, kfp_server

Result = subprocess.CompletedProcess[str]
Atelier = Callable[..., Result]
PARAMETERS = {
    "source": "s3://atelier/pictures/ring",
    "options": {"model": "builtin/shapes", "instance_prompt": "a zqx ring"},
    "questions": {"subject": ["a zqx ring"], "prior": ["a ring"]},
    "destination": "s3://atelier/models/ring",
}
DONE = {
    "state": "SUCCEEDED",
    "run_details": {"task_details": [{"display_name": "train", "state": "SUCCEEDED"}]},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Pipelines]:
    with kfp_server(tmp_path) as running:
        yield running


@pytest.fixture
def atelier(server: Pipelines, kfp_python: str, tmp_path: Path) -> Atelier:
    """`atelier pipeline ...` with the variables that a person exports; keyword arguments change
    them."""

    def run(*words: str | Path, **changes: str) -> Result:
        variables = {
            "KFP_HOST": server.url,
            "KFP_TOKEN": TOKEN,
            "KFP_CA_FILE": str(server.ca_file),
            "KFP_PYTHON": kfp_python,
            "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}",
            "HOME": str(tmp_path),
        }
        command = [sys.executable, "-m", "atelier", "pipeline", *words]
        environment = os.environ | variables | changes
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(PARAMETERS))
    return path


def test_from_upload_to_the_end_of_a_run(
    server: Pipelines, atelier: Atelier, parameters: Path
) -> None:
    for _ in range(2):
        uploaded = atelier("upload")
        assert uploaded.returncode == 0, uploaded.stderr
        assert uploaded.stdout.splitlines()[-1] == "pipeline-0"
    assert [one["display_name"] for one in server.pipelines] == ["dreambooth"]
    first, second = server.versions
    assert first["pipeline_spec"] == second["pipeline_spec"]
    assert second["display_name"].startswith("dreambooth-2")
    assert second["pipeline_spec"]["pipelineInfo"]["name"] == "dreambooth"

    working = {
        "state": "RUNNING",
        "run_details": {"task_details": [{"display_name": "train", "state": "RUNNING"}]},
    }
    server.scenes = [{"state": "PENDING"}, working, DONE]
    done = atelier("run", parameters)
    assert done.returncode == 0, done.stderr
    [run] = server.runs
    assert run["pipeline_version_reference"]["pipeline_version_id"] == "version-1", "the newest"
    assert run["runtime_config"]["parameters"] == PARAMETERS
    assert run["experiment_id"] == server.experiments[0]["experiment_id"]
    told = [line.split() for line in done.stdout.splitlines()]
    assert told[-4:] == [
        ["run-0"],
        ["train", "RUNNING"],
        ["train", "SUCCEEDED"],
        ["run", "SUCCEEDED"],
    ]


def test_a_run_that_fails_says_which_step_and_why(server: Pipelines, atelier: Atelier) -> None:
    error = {"code": 2, "message": "not published: subject is 0.620, wanted >= 0.8"}
    steps = [{"display_name": "train", "state": "SUCCEEDED"}]
    steps += [{"display_name": "check-quality", "state": "FAILED", "error": error}]  # type: ignore[dict-item]
    server.runs = [{"run_id": "run-0"}]
    server.scenes = [{"state": "FAILED", "run_details": {"task_details": steps}}]
    ended = atelier("watch", "run-0")
    assert ended.returncode == 1
    assert f"check-quality                FAILED: {error['message']}" in ended.stdout.splitlines()
    assert ended.stdout.splitlines()[-1].split() == ["run", "FAILED"]


def test_a_run_is_left_alone_on_request_and_bad_parameters_are_the_servers_to_name(
    server: Pipelines, atelier: Atelier, parameters: Path
) -> None:
    server.add_pipeline(
        "dreambooth",
        (ROOT / "pipelines" / "atelier_training" / "dreambooth" / "pipeline.yaml").read_bytes(),
    )
    left = atelier("run", parameters, "--no-watch")
    assert (left.returncode, left.stdout.splitlines()[-1]) == (0, "run-0")
    parameters.write_text(json.dumps({"source": "s3://atelier/pictures"}))
    refused = atelier("run", parameters)
    assert refused.returncode == 1
    assert (
        refused.stderr.splitlines()[-1]
        == f"atelier: KFP_HOST={server.url} answered HTTP 400: parameter destination is not"
        " optional, yet has no value"
    )


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (
            ["watch", "x"],
            {"KFP_TOKEN": "old"},
            r"KFP_TOKEN is refused by KFP_HOST={url} (HTTP 401): oc whoami -t",
        ),
        (["watch", "x"], {"KFP_TOKEN": ""}, "KFP_TOKEN is not set"),
        (
            ["watch", "x"],
            {"KFP_CA_FILE": ""},
            "the certificate of KFP_HOST={url} is not trusted: KFP_CA_FILE=(unset) must",
        ),
        (["watch", "x"], {"KFP_CA_FILE": "/gone.crt"}, "KFP_CA_FILE=/gone.crt does not exist"),
        (
            ["watch", "x"],
            {"KFP_HOST": "https://127.0.0.1:1"},
            "KFP_HOST=https://127.0.0.1:1 does not answer",
        ),
        (["watch", "x"], {}, "KFP_HOST={url} answered HTTP 404: /runs/x not found"),
        (
            ["run", "{parameters}"],
            {},
            "there is no pipeline 'dreambooth' on the server: run atelier pipeline upload first",
        ),
        (["run", "/gone.json"], {}, "parameters /gone.json cannot be read"),
    ],
)
def test_what_stands_in_the_way_is_one_line_that_names_it(
    server: Pipelines,
    atelier: Atelier,
    parameters: Path,
    words: list[str],
    changes: dict[str, str],
    message: str,
) -> None:
    done = atelier(*(word.format(parameters=parameters) for word in words), **changes)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"atelier: {message.format(url=server.url)}"), (
        done.stderr
    )
