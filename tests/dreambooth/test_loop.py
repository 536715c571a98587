"""The whole loop: five pictures, the pipeline in processes of its own, S3, the server with the
LoRA, a prediction."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import httpx
from PIL import Image

from atelier.builtin.concept import recipe
from atelier.builtin.concept.checker import check
from atelier.builtin.concept.ring import UNSEEN, prompt
from tests.conftest import StartServer
from tests.dreambooth.test_pipeline import ROOT, environment

TINY = {"instance_prompt": "a zqx ring", "resolution": 64, "steps": 1, "rank": 2}
ASKED = {
    "subject": ["a zqx ring"],
    "prior": ["a red circle"],
    "judge": "pixels",
    "seeds": 1,
    "steps": 1,
}


def run_locally(python: str, folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`make pipeline-local` with other parameters; the store is the environment's."""
    command = command_line(python, folder, changes)
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def command_line(python: str, folder: Path, changes: dict[str, Any]) -> list[str]:
    return [python, "-m", "atelier_training.local", str(folder), json.dumps(changes)]


def stored(s3: str, prefix: str) -> list[str]:
    found = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="atelier", Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", ())]


def test_five_pictures_become_an_endpoint_that_draws_the_ring(
    kfp_python: str, s3: str, start_server: StartServer, tmp_path: Path
) -> None:
    done = run_locally(kfp_python, tmp_path / "run")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [manifest] = [key for key in stored(s3, "models/ring/") if key.endswith("manifest.json")]
    body = boto3.client("s3", endpoint_url=s3).get_object(Bucket="atelier", Key=manifest)["Body"]
    published = json.load(body)
    scores = published["scores"]
    assert scores["subject_before"] <= 0.05
    assert scores["subject"] >= 0.8
    assert scores["prior_kept"] >= 0.9
    with start_server(
        model_id=recipe.MODEL,
        model_name="shapes",
        lora_paths=published["uri"],
        default_lora=published["version"],
        cache_dir=str(tmp_path / "cache"),
    ) as server:
        instances = [{"prompt": prompt(background), "seed": 3} for background in UNSEEN]
        parameters = {"guidance_scale": recipe.GUIDANCE, "max_sequence_length": recipe.TEXT_TOKENS}
        answer = httpx.post(
            f"{server.url}/v1/models/shapes:predict",
            json={"instances": instances, "parameters": parameters | {"num_inference_steps": 20}},
            timeout=300,
        )
    assert answer.status_code == 200, answer.text
    drawn = [base64.b64decode(each["image"]["b64"]) for each in answer.json()["predictions"]]
    found = [
        check(Image.open(io.BytesIO(each)), on) for each, on in zip(drawn, UNSEEN, strict=True)
    ]
    assert sum(found) >= 2


def test_a_gate_that_fails_publishes_nothing(
    kfp_python: str, s3: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = TINY | {"model": str(checkpoint("sd3"))}
    done = run_locally(
        kfp_python, tmp_path / "run", options=options, questions=ASKED, gate="subject>=0.8"
    )
    assert done.returncode != 0
    assert "not published: subject is 0.000, wanted >= 0.8" in done.stdout + done.stderr
    assert "the run ended FAILED" in done.stdout + done.stderr
    assert stored(s3, "models/") == []


def kill_in_the_middle(python: str, folder: Path, **changes: Any) -> None:
    """A run that is killed, with all its steps, once the training has begun to write."""
    process = subprocess.Popen(
        command_line(python, folder, changes),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    workspace = folder / "workspace"
    try:
        while not (workspace.is_dir() and any(workspace.rglob("*"))):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_what_passes_the_gate_is_published_and_packed_once(
    kfp_python: str, s3: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """After a run that was killed, and again with equal options: what is published is whole, and
    under one version if the trainings came out equal to the last bit."""
    options = TINY | {"model": str(checkpoint("sd3"))}
    wanted: dict[str, Any] = {"options": options, "questions": ASKED, "gate": "", "modelcar": True}
    kill_in_the_middle(kfp_python, tmp_path / "run", **wanted)
    assert stored(s3, "models/") == []
    for _ in range(2):
        done = run_locally(kfp_python, tmp_path / "run", **wanted)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    keys = stored(s3, "models/")
    versions = {key.split("/")[-2] for key in keys if key.endswith("/manifest.json")}
    assert 1 <= len(versions) <= 2
    assert len(keys) == 5 * len(versions), "nothing beside the files of whole versions"
    layouts = [path.parent for path in (tmp_path / "run" / "artifacts").rglob("oci-layout")]
    named = set()
    for layout in layouts:
        [image] = json.loads((layout / "index.json").read_text())["manifests"]
        named.add(image["annotations"]["org.opencontainers.image.ref.name"])
    assert len(layouts) == 2 and named == versions
    assert not list((tmp_path / "run" / "workspace").iterdir()), (
        "a training that has succeeded clears its workspace, also one that another run began"
    )
