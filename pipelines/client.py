"""Talks to a Data Science Pipelines server with kfp's client: `python -m pipelines.client COMMAND HOST CA_FILE ...`.

Started by `pipelines.cli` in the environment that has kfp. The bearer token is the variable KFP_TOKEN, so that it shows
in no process list.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.compile import compile_pipeline

POLL_SECONDS = 5.0
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


def connect(host: str, ca_file: str) -> Any:
    """kfp's client for the server at `host`."""
    import kfp

    return kfp.Client(host=host, existing_token=os.environ.get("KFP_TOKEN") or None, ssl_ca_cert=ca_file or None)


def upload(client: Any, name: str) -> str:
    """Make the pipeline `name`, or add a version to it; returns the pipeline's id."""
    known = client.get_pipeline_id(name)
    with TemporaryDirectory() as folder:
        package = str(compile_pipeline(Path(folder))[0])
        if known is None:
            return str(client.upload_pipeline(package, name).pipeline_id)
        version = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        client.upload_pipeline_version(package, f"{name}-{version}", pipeline_id=known)
        return str(known)


def start(client: Any, name: str, parameters: dict[str, Any]) -> str:
    """Start a run of the pipeline's newest version; returns its id.

    Raises:
        SystemExit: there is no such pipeline.
    """
    known = client.get_pipeline_id(name)
    if known is None:
        sys.exit(f"there is no pipeline {name!r} on the server: run atelier pipeline upload first")
    versions = client.list_pipeline_versions(known, sort_by="created_at desc", page_size=1).pipeline_versions
    experiment = client.create_experiment(name).experiment_id
    return str(
        client.run_pipeline(
            experiment, f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M}", pipeline_id=known, params=parameters,
            version_id=versions[0].pipeline_version_id,
        ).run_id
    )  # fmt: skip


def watch(client: Any, run_id: str, poll_s: float = POLL_SECONDS) -> str:
    """Print every change of a step's state until the run ends; returns its state."""
    seen: dict[str, str] = {}
    while True:
        run = client.get_run(run_id)
        for task in (run.run_details.task_details if run.run_details else None) or ():
            if task.state and seen.get(task.display_name) != task.state:
                seen[task.display_name] = task.state
                print(f"{task.display_name:<28} {task.state}", flush=True)
        if run.state in ENDED:
            print(f"{'run':<28} {run.state}" + (f": {run.error.message}" if run.error else ""))
            return str(run.state)
        time.sleep(poll_s)


def main(command: str, *words: str) -> int:
    """Run one command; the exit code."""
    if command == "compile":
        print(*compile_pipeline(Path(words[0])), sep="\n")
        return 0
    client = connect(words[0], words[1])
    if command == "upload":
        print(upload(client, words[2]))
        return 0
    if command == "run":
        run_id = start(client, words[2], json.loads(Path(words[3]).read_text()))
        print(run_id)
        if words[4] == "leave":
            return 0
    else:
        run_id = words[2]
    return 0 if watch(client, run_id) == "SUCCEEDED" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
