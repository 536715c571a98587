"""The compiled pipeline is current and valid, and says of each step where and how it runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier_training.dreambooth.options import TrainOptions
from tests.deploy.fake_rules import not_restricted
from tests.manifests.validation import errors

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "atelier_training" / "dreambooth"
FILES = ("pipeline.yaml", "pipeline-2.14.yaml")
ON_GPU = {"train", "generate-class-pictures", "evaluate"}
WITH_KEYS = ON_GPU | {"get-data", "publish"}


def documents(name: str = FILES[0]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and its platform specification."""
    specification, platform = yaml.safe_load_all((FOLDER / name).read_text())
    return specification, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def tasks(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All tasks by name, those inside conditions and the exit handler too."""
    found = dict(specification["root"]["dag"]["tasks"])
    for component in specification["components"].values():
        found |= component.get("dag", {}).get("tasks", {})
    return found


def containers(specification: dict[str, Any]) -> dict[str, dict[str, Any]]:
    executors = specification["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()
    }


def test_the_checked_in_files_are_what_the_code_compiles_to(
    kfp_python: str, tmp_path: Path
) -> None:
    subprocess.run(
        [kfp_python, "-m", "atelier_training.compile", tmp_path],
        cwd=ROOT,
        check=True,
        env=environment(),
    )
    for name in FILES:
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), "run make pipeline"


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATELIER_")}
    return clean | {"PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", FILES)
def test_kfp_accepts_the_files(kfp_python: str, name: str) -> None:
    code = (
        "import sys; from kfp import components;"
        " print(components.load_component_from_file(sys.argv[1]).name)"
    )
    done = subprocess.run(
        [kfp_python, "-c", code, FOLDER / name], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "dreambooth"


def test_secrets_are_environment_and_never_parameters() -> None:
    specification, executors = documents()
    parameters = specification["root"]["inputDefinitions"]["parameters"]
    assert not [
        name
        for name in parameters
        if any(word in name.lower() for word in ("key", "secret", "token"))
    ]
    keyed = {
        name.removeprefix("exec-"): e["secretAsEnv"]
        for name, e in executors.items()
        if "secretAsEnv" in e
    }
    assert set(keyed) == WITH_KEYS
    for secrets in keyed.values():
        may_lack = {
            entry["envVar"]: secret["optional"]
            for secret in secrets
            for entry in secret["keyToEnv"]
        }
        assert may_lack == {
            "AWS_ACCESS_KEY_ID": False,
            "AWS_SECRET_ACCESS_KEY": False,
            "AWS_S3_ENDPOINT": True,  # a pod starts with a connection that lacks these
            "AWS_DEFAULT_REGION": True,
            "AWS_S3_BUCKET": True,
        }


def test_every_parameter_has_a_type_and_a_description() -> None:
    parameters = documents()[0]["root"]["inputDefinitions"]["parameters"]
    assert len(parameters) == 17
    assert all(entry["parameterType"] and entry["description"] for entry in parameters.values())


def test_gpu_steps_ask_for_a_gpu_tolerate_its_taint_and_have_shared_memory() -> None:
    specification, executors = documents()
    for name, container in containers(specification).items():
        accelerator = container["resources"].get("accelerator")
        platform = executors.get(f"exec-{name}", {})
        if name in ON_GPU:
            assert (
                accelerator["resourceType"] == "nvidia.com/gpu"
                and accelerator["resourceCount"] == "1"
            )
            assert platform["tolerations"] == [
                {"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}
            ]
            assert platform["emptyDirMounts"][0]["mountPath"] == "/dev/shm"
        else:
            assert accelerator is None and "tolerations" not in platform


def test_every_step_has_limits() -> None:
    for container in containers(documents()[0]).values():
        assert (
            container["resources"]["resourceCpuLimit"]
            and container["resources"]["resourceMemoryLimit"]
        )


def test_retries_and_caching_are_as_each_step_bears() -> None:
    found = tasks(documents()[0])
    cached = {
        name for name, task in found.items() if task.get("cachingOptions", {}).get("enableCache")
    }
    assert cached >= ON_GPU and not cached & {
        "get-data",
        "publish",
        "deploy",
        "check-quality",
        "report",
        "register",
    }
    retries = {
        name: task["retryPolicy"]["maxRetryCount"]
        for name, task in found.items()
        if "retryPolicy" in task
    }
    assert set(retries) == WITH_KEYS | {"register", "modelcar"}
    assert retries["train"] >= 3


def test_the_training_has_the_workspace_volume() -> None:
    mounted = {name for name, e in documents()[1].items() if "pvcMount" in e}
    assert "exec-train" in mounted


def test_the_exit_handler_runs_whatever_happens() -> None:
    report = documents()[0]["root"]["dag"]["tasks"]["report"]
    assert report["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"


def test_publication_waits_for_the_gate() -> None:
    assert "check-quality" in tasks(documents()[0])["publish"]["dependentTasks"]


def test_the_file_for_older_servers_lacks_only_what_they_refuse() -> None:
    assert "optional: false" in (FOLDER / FILES[0]).read_text()
    specification, executors = documents(FILES[1])
    assert specification == documents()[0]
    assert all(
        "optional" not in secret for e in executors.values() for secret in e.get("secretAsEnv", ())
    )


def test_the_multi_node_jobs_are_valid_and_run_the_same_command() -> None:
    jobs = list(yaml.safe_load_all((ROOT / "pipelines" / "trainjob.yaml").read_text()))
    assert [job["kind"] for job in jobs] == ["TrainJob", "PyTorchJob"]
    assert errors(jobs) == []
    trainer = jobs[0]["spec"]["trainer"]
    containers = [
        replica["template"]["spec"]["containers"][0]
        for replica in jobs[1]["spec"]["pytorchReplicaSpecs"].values()
    ]
    for replica in jobs[1]["spec"]["pytorchReplicaSpecs"].values():
        assert not list(not_restricted(replica["template"]["spec"]))
    queues = {job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] for job in jobs}
    assert queues == {"atelier"}, "the queue that manifests/setup/queue makes"
    for container in containers:
        assert (container["command"], container["args"]) == (trainer["command"], trainer["args"])
    known = {f"--{name.replace('_', '-')}" for name in TrainOptions.model_fields}
    assert {argument.partition("=")[0] for argument in trainer["args"]} <= known
