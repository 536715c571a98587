"""Talks to a Data Science Pipelines server with kfp's client: `python -m atelier_training.client
COMMAND HOST CA_FILE ...`.

Started by `atelier.cli.pipeline` in the environment that has kfp. The bearer token is the variable
KFP_TOKEN, so that it shows in no process list.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from atelier.errors import AtelierError, StartError

FIRST_POLL_SECONDS, POLL_SECONDS = 0.5, 5.0
ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


def connect(host: str, ca_file: str) -> Any:
    """kfp's client for the server at `host`, which was asked once whether it lets us in; see
    `explained` for its errors."""
    import kfp
    import kfp_server_api

    token = os.environ.get("KFP_TOKEN", "").strip()
    # kfp.Client asks the same, but five times in half a minute, and then says only that there was a
    # time-out.
    asked = kfp_server_api.Configuration(host=host)
    asked.ssl_ca_cert = ca_file or None
    if token:
        asked.api_key, asked.api_key_prefix = {"authorization": token}, {"authorization": "Bearer"}
    kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(asked)).healthz_service_get_healthz()
    return kfp.Client(host=host, existing_token=token or None, ssl_ca_cert=ca_file or None)


@contextmanager
def explained(host: str, ca_file: str) -> Iterator[None]:
    """What kfp's client raises, as a StartError that names the value to look at."""
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError, SSLError

    try:
        yield
    except ApiException as error:
        raise StartError(_refusal(host, error)) from None
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, SSLError):
            hint = f"KFP_CA_FILE={ca_file or '(unset)'} must be the file of the CA that signed it"
            raise StartError(
                f"the certificate of KFP_HOST={host} is not trusted: {hint} ({reason})"
            ) from None
        raise StartError(f"KFP_HOST={host} does not answer: {reason}") from None


def _refusal(host: str, error: Any) -> str:
    if error.status in (401, 403):
        state = "is refused" if os.environ.get("KFP_TOKEN") else "is not set"
        return (
            f"KFP_TOKEN {state} by KFP_HOST={host} (HTTP {error.status}): oc whoami -t prints a"
            " fresh one"
        )
    try:
        told = json.loads(error.body)
        message = told.get("message") or told.get("error")
    except (TypeError, ValueError, AttributeError):
        message = error.reason
    return f"KFP_HOST={host} answered HTTP {error.status}: {message}"


def upload(client: Any, name: str) -> str:
    """Make the pipeline `name`, or add a version to it; returns the pipeline's id."""
    from atelier_training.compile import compile_pipeline

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
        StartError: there is no such pipeline, or it has no version.
    """
    known = client.get_pipeline_id(name)
    if known is None:
        raise StartError(
            f"there is no pipeline {name!r} on the server: run atelier pipeline upload first"
        )
    versions = client.list_pipeline_versions(
        known, sort_by="created_at desc", page_size=1
    ).pipeline_versions
    if not versions:
        raise StartError(f"the pipeline {name!r} has no version: run atelier pipeline upload")
    experiment = client.create_experiment(name).experiment_id
    return str(
        client.run_pipeline(
            experiment, f"{name} {datetime.now(UTC):%Y-%m-%d %H:%M}", pipeline_id=known,
            params=parameters,
            version_id=versions[0].pipeline_version_id,
        ).run_id
    )  # fmt: skip


def watch(client: Any, run_id: str) -> str:
    """Print every change of a step's state until the run ends; returns its state."""
    seen: dict[str, str] = {}
    pause = FIRST_POLL_SECONDS
    while True:
        run = client.get_run(run_id)
        for task in (run.run_details.task_details if run.run_details else None) or ():
            if task.state and seen.get(task.display_name) != task.state:
                seen[task.display_name] = task.state
                print(_line(task.display_name, task), flush=True)
        if run.state in ENDED:
            print(_line("run", run), flush=True)
            return str(run.state)
        time.sleep(pause)
        pause = min(2 * pause, POLL_SECONDS)


def _line(name: str, thing: Any) -> str:
    return f"{name:<28} {thing.state}" + (
        f": {thing.error.message}" if thing.error and thing.error.message else ""
    )


def read_parameters(path: Path) -> dict[str, Any]:
    """The pipeline's parameters from a JSON file.

    Raises:
        StartError: there is no such file, or it holds no JSON object.
    """
    try:
        parameters = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartError(f"parameters {path} cannot be read: {error}") from None
    if not isinstance(parameters, dict):
        raise StartError(f"parameters {path} hold no JSON object, but {type(parameters).__name__}")
    return parameters


def main(command: str, *words: str) -> int:
    """Run one command; the exit code: 1 if a run that was followed did not succeed.

    Raises:
        StartError: the input or the server stands in the way.
    """
    if command == "compile":
        from atelier_training.compile import compile_pipeline

        print(*compile_pipeline(Path(words[0])), sep="\n")
        return 0
    host, ca_file = words[0].rstrip("/"), words[1]
    host = host if "://" in host else f"https://{host}"
    if ca_file and not Path(ca_file).is_file():
        raise StartError(f"KFP_CA_FILE={ca_file} does not exist")
    parameters = read_parameters(Path(words[3])) if command == "run" else {}
    with explained(host, ca_file):
        client = connect(host, ca_file)
        if command == "upload":
            print(upload(client, words[2]))
            return 0
        run_id = words[2] if command == "watch" else start(client, words[2], parameters)
        if command == "run":
            print(run_id, flush=True)
            if words[4] == "leave":
                return 0
        return 0 if watch(client, run_id) == "SUCCEEDED" else 1


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except AtelierError as error:
        sys.exit(f"atelier: {error}")
