"""The whole pipeline in processes of its own, from pictures to the gate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

from tests.dreambooth.test_pipeline import ROOT, environment

TINY = {"instance_prompt": "a zqx ring", "resolution": 64, "steps": 1, "rank": 2}
ASKED = {"subject": ["a zqx ring"], "prior": ["a red circle"], "judge": "pixels", "seeds": 1, "steps": 1}


def run_locally(python: str, folder: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    """`make pipeline-local` with other parameters; the store is the environment's."""
    command = [python, "-m", "pipelines.local", str(folder), json.dumps(changes)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def stored(s3: str, prefix: str) -> list[str]:
    found = boto3.client("s3", endpoint_url=s3).list_objects_v2(Bucket="atelier", Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", ())]


def test_a_gate_that_fails_publishes_nothing(
    kfp_python: str, s3: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = TINY | {"model": str(checkpoint("sd3"))}
    done = run_locally(kfp_python, tmp_path / "run", options=options, questions=ASKED, gate="subject>=0.8")
    assert done.returncode != 0
    assert "not published: subject is 0.000, wanted >= 0.8" in done.stdout + done.stderr
    assert "the run ended FAILED" in done.stdout + done.stderr
    assert stored(s3, "models/") == []
    assert (tmp_path / "run" / "workspace").is_dir(), "a failed run keeps its workspace"


def test_what_passes_the_gate_is_published_and_packed(
    kfp_python: str, s3: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = TINY | {"model": str(checkpoint("sd3"))}
    done = run_locally(kfp_python, tmp_path / "run", options=options, questions=ASKED, gate="", modelcar=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [manifest] = [key for key in stored(s3, "models/") if key.endswith("/manifest.json")]
    [layout] = [path.parent for path in (tmp_path / "run" / "artifacts").rglob("oci-layout")]
    [image] = json.loads((layout / "index.json").read_text())["manifests"]
    assert image["annotations"]["org.opencontainers.image.ref.name"] == manifest.split("/")[-2], "the same version"
    assert not list((tmp_path / "run" / "workspace").iterdir()), "a successful run clears its workspace"
