"""setup.sh against a fake `oc`: what it checks, plans, applies, waits for and removes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atelier import __version__
from tests.manifests.rendering import ROOT, needs_kubectl

pytestmark = needs_kubectl

CORE = ["Namespace", "ServiceAccount", "Service", "ConfigMap", "PersistentVolumeClaim", "Secret"]
KINDS = [
    *(("v1", kind) for kind in CORE),
    ("apps/v1", "Deployment"),
    ("batch/v1", "Job"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("policy/v1", "PodDisruptionBudget"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("serving.kserve.io/v1alpha1", "ServingRuntime"),
    ("serving.kserve.io/v1beta1", "InferenceService"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
    ("datasciencepipelinesapplications.opendatahub.io/v1", "DataSciencePipelinesApplication"),
    ("kubeflow.org/v1", "Notebook"),
    ("route.openshift.io/v1", "Route"),
    ("image.openshift.io/v1", "ImageStream"),
    ("build.openshift.io/v1", "BuildConfig"),
    ("tekton.dev/v1", "Task"),
    ("tekton.dev/v1", "Pipeline"),
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"),
    ("keda.sh/v1alpha1", "ScaledObject"),
]
WORKING = {
    "logged_in": True,
    "forbidden": [],
    "kinds": KINDS,
    "nodes": ["4 NVIDIA-A10G", "8 NVIDIA-L40S", " "],
    "default_storage_class": True,
    "image_pullable": True,
    "version": __version__,
    "existing": [],
    "ready": "True",
    "pods": "",
    "events": "",
}


class Cluster:
    """A fake cluster and a shell in which `oc` talks to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = dict(WORKING)
        tool = folder / "bin" / "oc"
        tool.parent.mkdir()
        script = Path(__file__).with_name("fake_oc.py").read_text()
        tool.write_text(script.replace("#!/usr/bin/env python3", f"#!{sys.executable}"))
        tool.chmod(0o755)

    def setup(self, *options: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "facts.json").write_text(json.dumps(self.facts))
        (self.folder / "calls.txt").write_text("")
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "FAKE_CLUSTER": str(self.folder),
            "POLL_SECONDS": "0.1",
        }
        return subprocess.run(
            ["bash", str(ROOT / "setup.sh"), *options],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls.txt").read_text().splitlines()

    @property
    def objects(self) -> dict[str, Any]:
        path = self.folder / "objects.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def changes(self) -> list[str]:
        """Calls that would change a cluster."""
        return [
            call
            for call in self.calls
            if re.search(r"\b(apply|create -f|delete|patch|start-build)\b", call)
        ]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def test_a_first_run_ends_with_the_url_and_a_curl(cluster: Cluster) -> None:
    done = cluster.setup("--namespace", "studio")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        "namespace/studio",
        "servingruntime/atelier-cpu",
        "inferenceservice/shapes",
    } <= cluster.objects.keys()
    assert cluster.objects["inferenceservice/shapes"]["metadata"]["namespace"] == "studio"
    *_, url, _, curl = done.stdout.strip().splitlines()
    assert url == "https://shapes.apps.example.com"
    assert curl.startswith("curl ") and f"{url}/v1/models/shapes:predict" in curl


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    options = ("--overlay", "sdxl-production", "--with", "all")
    assert cluster.setup(*options).returncode == 0
    before = cluster.objects
    second = cluster.setup(*options)
    assert second.returncode == 0
    assert cluster.objects == before
    states = re.findall(r"^\S+/\S+ (created|configured|unchanged)$", second.stdout, re.MULTILINE)
    assert (
        set(states) == {"unchanged"} and len(states) == len(before) - 1
    )  # but the build's own result
    assert not any("start-build" in call or "create -f" in call for call in cluster.calls)


def test_a_dry_run_prints_the_whole_plan_and_applies_nothing(cluster: Cluster) -> None:
    done = cluster.setup("--overlay", "sdxl-production", "--with", "all", "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert cluster.changes() == []
    for planned in (
        "Namespace/atelier",
        "Job/atelier-s3-setup",
        "Notebook/atelier-workbench",
        "BuildConfig/atelier",
    ):
        assert re.search(f"would create +{planned}", done.stdout), planned
    assert "would build" in done.stdout
    assert "would wait up to 900 s for InferenceService/sdxl" in done.stdout


def test_a_dry_run_tells_what_is_there_already(cluster: Cluster) -> None:
    cluster.setup()
    assert "would update if changed   InferenceService/shapes" in cluster.setup("--dry-run").stdout


MISSING = {
    "the right to write InferenceServices": (
        {"forbidden": ["inferenceservices.serving.kserve.io"]},
        (),
        "the right to create inferenceservices.serving.kserve.io",
        "oc adm policy add-role-to-user",
    ),
    "the project": (
        {"forbidden": ["namespaces"]},
        (),
        "project atelier, and no right to make it",
        "oc new-project",
    ),
    "KServe": (
        {"kinds": [pair for pair in KINDS if "kserve" not in pair[0]]},
        (),
        "InferenceService serving.kserve.io/v1beta1",
        "install the OpenShift AI operator",
    ),
    "a version of KServe": (
        {
            "kinds": [
                (api.replace("v1beta1", "v1alpha2") if "kserve" in api else api, kind)
                for api, kind in KINDS
            ]
        },
        (),
        "InferenceService serving.kserve.io/v1beta1 (the cluster has serving.kserve.io/v1alpha2)",
        "KServe 0.15 or newer",
    ),
    "pipelines": (
        {"kinds": [pair for pair in KINDS if "pipelines" not in pair[0]]},
        ("--with", "storage,pipelines"),
        "DataSciencePipelinesApplication",
        "datasciencepipelines (3.x: aipipelines) to Managed",
    ),
    "KEDA": (
        {"kinds": [pair for pair in KINDS if pair[0] != "keda.sh/v1alpha1"]},
        ("--overlay", "sdxl-production"),
        "KEDA",
        "Custom Metrics Autoscaler",
    ),
    "a GPU": (
        {"nodes": [" ", " "]},
        ("--overlay", "sdxl"),
        "a node with an NVIDIA GPU",
        "GPU operator",
    ),
    "the right GPU": (
        {"nodes": ["1 Tesla-T4"]},
        ("--overlay", "sdxl"),
        "nvidia.com/gpu.product=NVIDIA-A10G",
        "patch",
    ),
    "a default storage class": (
        {"default_storage_class": False},
        ("--overlay", "s3", "--with", "storage"),
        "a default storage class",
        "is-default-class",
    ),
    "the data connection": (
        {},
        ("--overlay", "s3"),
        "data connection atelier-models",
        "manifests/setup/connection",
    ),
    "the volume": (
        {},
        ("--overlay", "pvc"),
        "PersistentVolumeClaim atelier-models",
        "atelier fetch",
    ),
    "the image": (
        {"image_pullable": False},
        (),
        f"quay.io/atelier/atelier:{__version__} cannot be pulled",
        "--with build",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_prerequisite_is_named_with_its_remedy(cluster: Cluster, name: str) -> None:
    facts, options, what, remedy = MISSING[name]
    cluster.facts.update(facts)
    done = cluster.setup(*options)
    assert done.returncode == 1
    assert re.search(rf"MISSING  .*{re.escape(what)}.*\n +-> .*{re.escape(remedy)}", done.stdout), (
        done.stdout
    )
    assert "nothing was applied" in done.stderr
    assert cluster.changes() == []


def test_without_a_login_it_says_how_to_log_in(cluster: Cluster) -> None:
    cluster.facts["logged_in"] = False
    done = cluster.setup()
    assert done.returncode == 1
    assert "oc login" in done.stderr


def test_a_gpu_check_that_is_not_allowed_is_said_and_not_held_against_the_user(
    cluster: Cluster,
) -> None:
    cluster.facts["nodes"] = None
    done = cluster.setup("--overlay", "sdxl", "--dry-run")
    assert done.returncode == 0
    assert "GPU nodes were not checked" in done.stdout


@pytest.mark.parametrize(
    ("pods", "why"),
    [
        ("sdxl-predictor-1 Pending ImagePullBackOff", "the image cannot be pulled"),
        ("sdxl-predictor-1 Pending Unschedulable", "no node has room"),
        ("sdxl-predictor-1 Running CrashLoopBackOff OOMKilled", "raise limits.memory"),
        (
            "sdxl-predictor-1 Running CrashLoopBackOff Error",
            "logs -l serving.kserve.io/inferenceservice=sdxl",
        ),
    ],
)
def test_a_start_that_fails_ends_with_a_reason_and_the_events(
    cluster: Cluster, pods: str, why: str
) -> None:
    cluster.facts.update(
        ready="False", pods=pods, events="sdxl-predictor-1 Failed something happened"
    )
    done = cluster.setup("--overlay", "sdxl", "--timeout", "1")
    assert done.returncode == 1
    assert f"s {pods}" in done.stdout, "progress shows the pods' states"
    assert why in done.stdout
    assert "something happened" in done.stdout


def test_the_first_api_key_is_random_and_never_shown(cluster: Cluster, tmp_path: Path) -> None:
    checkout = clone(tmp_path)
    overlay = checkout / "manifests/overlays/dev/kustomization.yaml"
    overlay.write_text(
        overlay.read_text().replace(
            "components:\n", "components:\n  - ../../components/auth/api-keys\n"
        )
    )
    first = run(checkout, cluster)
    key = cluster.objects["secret/atelier-api-keys"]["stringData"]["API_KEYS"]
    assert len(key) >= 40
    assert key not in first.stdout + first.stderr
    assert not any(key in call for call in cluster.calls)
    assert "get secret atelier-api-keys" in first.stdout.splitlines()[-1], (
        "the curl reads the key from the cluster"
    )
    run(checkout, cluster)
    assert cluster.objects["secret/atelier-api-keys"]["stringData"]["API_KEYS"] == key


def clone(tmp_path: Path) -> Path:
    checkout = tmp_path / "clone"
    checkout.mkdir()
    shutil.copy(ROOT / "setup.sh", checkout)
    shutil.copytree(ROOT / "manifests", checkout / "manifests")
    return checkout


def run(checkout: Path, cluster: Cluster) -> subprocess.CompletedProcess[str]:
    (cluster.folder / "facts.json").write_text(json.dumps(cluster.facts))
    path = f"{cluster.folder / 'bin'}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "FAKE_CLUSTER": str(cluster.folder),
        "POLL_SECONDS": "0.1",
    }
    done = subprocess.run(
        ["bash", "setup.sh"], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("registry.example:5000/team/atelier", f"registry.example:5000/team/atelier:{__version__}"),
        ("registry.example:5000/team/atelier:1.2", "registry.example:5000/team/atelier:1.2"),
        ("registry.example/atelier@sha256:0123", "registry.example/atelier@sha256:0123"),
    ],
)
def test_an_image_of_ones_own_is_used(cluster: Cluster, image: str, expected: str) -> None:
    assert cluster.setup("--image", image).returncode == 0
    runtime = cluster.objects["servingruntime/atelier-cpu"]
    assert runtime["spec"]["containers"][0]["image"] == expected


def test_a_namespace_of_ones_own_reaches_every_object_that_spells_it_out(cluster: Cluster) -> None:
    options = (
        "--namespace",
        "studio",
        "--with",
        "all",
        "--repository",
        "https://git.example/me/atelier.git",
    )
    assert cluster.setup(*options).returncode == 0
    there = cluster.objects
    pipelines = there["datasciencepipelinesapplication/dspa"]["spec"]["objectStorage"][
        "externalStorage"
    ]
    assert pipelines["host"] == "s3.studio.svc.cluster.local"
    assert {
        subject["namespace"] for subject in there["rolebinding/atelier-deployer"]["subjects"]
    } == {"studio"}
    notebook = there["notebook/atelier-workbench"]
    assert (
        notebook["metadata"]["annotations"]["opendatahub.io/connections"] == "studio/atelier-models"
    )
    assert "/notebook/studio/" in json.dumps(notebook["spec"])
    assert (
        there["buildconfig/atelier"]["spec"]["source"]["git"]["uri"]
        == "https://git.example/me/atelier.git"
    )
    assert there["job/atelier-s3-setup"]["spec"]["template"]["spec"]["containers"][0][
        "image"
    ].startswith("image-registry.openshift-image-registry.svc:5000/studio/atelier:")
    assert {doc["metadata"].get("namespace", "studio") for doc in there.values()} == {"studio"}


def test_only_the_parts_that_were_asked_for_are_applied(cluster: Cluster) -> None:
    assert cluster.setup("--with", "queue").returncode == 0
    assert "localqueue/atelier" in cluster.objects
    assert not {"notebook/atelier-workbench", "deployment/s3", "route/s3"} & cluster.objects.keys()


def test_uninstall_keeps_data_and_what_other_endpoints_use(cluster: Cluster) -> None:
    cluster.setup("--overlay", "sdxl", "--with", "storage")
    cluster.setup("--overlay", "flux")
    cluster.setup("--overlay", "sdxl", "--uninstall")
    assert "inferenceservice/sdxl" not in cluster.objects
    assert {
        "inferenceservice/flux",
        "servingruntime/atelier",
        "serviceaccount/atelier",
    } <= cluster.objects.keys()
    done = cluster.setup("--overlay", "flux", "--with", "storage", "--uninstall")
    assert set(cluster.objects) == {"namespace/atelier", "persistentvolumeclaim/s3"}
    assert "kubectl delete namespace" in done.stdout or "oc delete namespace atelier" in done.stdout


def test_uninstall_can_be_tried_dry(cluster: Cluster) -> None:
    cluster.setup()
    done = cluster.setup("--uninstall", "--dry-run")
    assert "would delete InferenceService/shapes" in done.stdout
    assert cluster.changes() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--overlay", "nothing"), "known overlays are"),
        (("--with", "everything"), "known parts are"),
        (("--namespace", "Not_A_Name"), "lower-case letters"),
        (("--timeout", "soon"), "whole seconds"),
        (("--frobnicate",), "unknown option"),
        (("--overlay",), "needs a value"),
        (("--overlay", "glm-4.7-flash", "--with", "build"), "without vLLM"),
    ],
)
def test_a_wrong_option_is_explained(
    cluster: Cluster, options: tuple[str, ...], message: str
) -> None:
    done = cluster.setup(*options)
    assert done.returncode == 1
    assert message in done.stderr


def test_the_scripts_pass_shellcheck() -> None:
    tool = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    assert tool, "pip install '.[dev]' brings shellcheck"
    done = subprocess.run(
        [tool, "-x", "setup.sh", "manifests/setup/checks.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
