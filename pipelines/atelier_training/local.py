"""Runs the whole pipeline on this machine: `python -m atelier_training.local FOLDER`.

The same steps as in a cluster, each in a process of its own, on the built-in model and the striped
ring, against an S3 server on the loopback interface unless AWS_S3_ENDPOINT names another. Volumes,
secrets and GPUs are the cluster's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from kfp import local

from atelier.builtin.concept import recipe
from atelier.builtin.concept.ring import write_pictures
from atelier_training.dreambooth.pipeline import dreambooth

BUCKET = "atelier"


@contextmanager
def s3_store() -> Iterator[str]:
    """The store that AWS_S3_ENDPOINT names; without one, a server of our own for as long as the
    block runs."""
    if endpoint := os.environ.get("AWS_S3_ENDPOINT"):
        yield endpoint
        return
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_S3_ENDPOINT": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_S3_BUCKET": BUCKET,
    }
    try:
        yield os.environ["AWS_S3_ENDPOINT"]
    finally:
        server.stop()


def upload_pictures(folder: Path, endpoint: str, prefix: str) -> str:
    """Put the files of `folder` under `prefix` of the bucket, which is made if it is missing;
    returns the address."""
    client = boto3.client("s3", endpoint_url=endpoint)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), BUCKET, f"{prefix}/{path.name}")
    return f"s3://{BUCKET}/{prefix}"


def run_pipeline(folder: Path, **parameters: Any) -> Any:
    """Run it with artifacts and workspace under `folder`; returns kfp's task, or raises
    RuntimeError if a step failed."""
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"))
    return dreambooth(workspace=str(folder / "workspace"), **parameters)


def main(folder: Path, changes: dict[str, Any]) -> None:
    """The striped ring from its pictures to a published version."""
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder / "pictures")
    with s3_store() as endpoint:
        run_pipeline(
            folder,
            **{
                "source": upload_pictures(folder / "pictures", endpoint, "pictures/ring"),
                "options": recipe.options(),
                "questions": recipe.questions(),
                "destination": f"s3://{BUCKET}/models/ring",
                "gate": recipe.GATE,
            }
            | changes,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
