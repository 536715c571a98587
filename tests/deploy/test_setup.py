"""setup.sh against a fake `oc`: what it checks, plans, applies, waits for and removes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier import __version__
from tests.deploy.any_server import only_the_fake
from tests.deploy.fake_api import FakeApi, Moment
from tests.deploy.fake_kinds import ALL, Kind
from tests.manifests.rendering import ROOT, needs_kubectl

pytestmark = needs_kubectl

WORKING = {
    "logged_in": True,
    "forbidden": [],
    "kinds": ALL,
    "kserve": 21,
    "dead_api": "",
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
        self.api = FakeApi(check=lambda _: [], namespace="")
        self.api.kubeconfig(folder, "atelier")
        tool = folder / "bin" / "oc"
        tool.parent.mkdir()
        tool.symlink_to(Path(__file__).with_name("fake_oc.sh"))

    def become_as_told(self) -> None:
        """The server as the facts say."""
        api, facts = self.api, self.facts
        api.kinds = list(facts["kinds"])
        told = ("logged_in", "forbidden", "kserve", "dead_api")
        api.facts.update({name: facts[name] for name in told})
        nodes = [] if facts["nodes"] is None else facts["nodes"]
        if facts["nodes"] is None:
            api.facts["forbidden"] = [*facts["forbidden"], "list nodes"]
        for key in [key for key in api.store.objects if key[0] in ("nodes", "storageclasses")]:
            api.store.delete(key)
        for number, node in enumerate(nodes):
            gpus, _, product = node.partition(" ")
            allocatable = {"nvidia.com/gpu": gpus} if gpus else {}
            labels = {"nvidia.com/gpu.product": product} if product else {}
            api.add(
                *("v1", "Node", f"node{number}", ""),
                metadata={"labels": labels},
                status={"allocatable": allocatable},
            )
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        chosen = default if facts["default_storage_class"] else {}
        meta = {"annotations": chosen}
        api.add("storage.k8s.io/v1", "StorageClass", "disk", "", metadata=meta)
        events = []
        if facts["events"]:
            subject, reason, message = facts["events"].split(" ", 2)
            events = [{"involvedObject": {"name": subject}, "reason": reason, "message": message}]
        ready = facts["ready"] == "True"
        if not isinstance(facts["pods"], str):
            api.scene = facts["pods"]
        else:
            api.scene = [Moment(ready, pods=list(pods_of(facts["pods"])), events=events)]

    def environment(self) -> dict[str, str]:
        self.become_as_told()
        (self.folder / "calls.txt").write_text("")
        return {
            **os.environ,
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "FAKE_CALLS": str(self.folder / "calls.txt"),
            "FAKE_IMAGE_PULLABLE": str(self.facts["image_pullable"]),
            "FAKE_VERSION": str(self.facts["version"]),
            "KUBECONFIG": str(self.folder / "kubeconfig"),
            "HOME": str(self.folder),
            "POLL_SECONDS": "0.1",
        }

    def setup(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(ROOT / "setup.sh"), *options],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls.txt").read_text().splitlines()

    @property
    def objects(self) -> dict[str, Any]:
        """What was applied or created by kubectl and is still there."""
        store = self.api.store
        return {
            f"{doc['kind'].lower()}/{key[2]}": doc
            for key, doc in store.objects.items()
            if any(owner.startswith("kubectl") for owner in store.owners.get(key, {}))
        }

    def changes(self) -> list[str]:
        """Calls that would change a cluster."""
        return [
            call
            for call in self.calls
            if re.search(r"\b(apply|create -f|delete|patch|start-build)\b", call)
            and "auth can-i" not in call
            and "status.allowed" not in call  # asks for rights
            and "--verbs=delete" not in call
        ]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    only_the_fake("be given rights, kinds, nodes and failures at will")
    made = Cluster(tmp_path)
    yield made
    made.api.close()


def pods_of(lines: str) -> Iterator[dict[str, Any]]:
    """Pods from lines: name, phase, what it waits for, how it ended."""
    for line in lines.splitlines():
        name, phase, reason, *ended = line.split()
        status: dict[str, Any] = {"phase": phase}
        if reason == "Unschedulable":
            status["conditions"] = [{"type": "PodScheduled", "reason": reason}]
        else:
            last = {"terminated": {"reason": ended[0]}} if ended else {}
            state = {"name": "c", "state": {"waiting": {"reason": reason}}, "lastState": last}
            status["containerStatuses"] = [state]
        yield {"metadata": {"name": name}, "status": status}


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
    assert url == "https://shapes.example.com"
    assert curl.startswith("curl ") and f"{url}/v1/models/shapes:predict" in curl


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    options = ("--overlay", "sdxl-production", "--with", "all")
    assert cluster.setup(*options).returncode == 0
    before = cluster.objects
    second = cluster.setup(*options)
    assert second.returncode == 0
    assert cluster.objects == before
    # kubectl says "configured" of every budget, since its selector's patch strategy is `replace`;
    # that the object is the same, resource version included, was asserted above.
    said = second.stdout.replace("poddisruptionbudget.policy/atelier configured", "x/y unchanged")
    states = re.findall(r"^\S+/\S+ (created|configured|unchanged)$", said, re.MULTILINE)
    made_otherwise = {f"imagestreamtag/atelier:{__version__}"}  # the build's own result
    assert set(states) == {"unchanged"} and len(states) == len(before.keys() - made_otherwise)
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
        {"kinds": [pair for pair in ALL if "kserve" not in pair[0]]},
        (),
        "InferenceService serving.kserve.io/v1beta1",
        "install the OpenShift AI operator",
    ),
    "a version of KServe": (
        {
            "kinds": [
                Kind(api.replace("v1beta1", "v1alpha2") if "kserve" in api else api, kind)
                for api, kind in ALL
            ]
        },
        (),
        "InferenceService serving.kserve.io/v1beta1 (the cluster has serving.kserve.io/v1alpha2)",
        "KServe 0.15 or newer",
    ),
    "pipelines": (
        {"kinds": [pair for pair in ALL if "pipelines" not in pair[0]]},
        ("--with", "storage,pipelines"),
        "DataSciencePipelinesApplication",
        "datasciencepipelines (3.x: aipipelines) to Managed",
    ),
    "KEDA": (
        {"kinds": [pair for pair in ALL if pair[0] != "keda.sh/v1alpha1"]},
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
    assert re.fullmatch(r"[\w-]{43}", key), "256 bits"
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
    done = subprocess.run(
        ["bash", "setup.sh"],
        cwd=checkout,
        env=cluster.environment(),
        capture_output=True,
        text=True,
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
    kept = {"namespace/atelier", "persistentvolumeclaim/s3", "secret/atelier-api-keys"}
    assert set(cluster.objects) == kept
    for name in ("PersistentVolumeClaim/s3", "Secret/s3-server", "Namespace/atelier"):
        assert f"kept {name}" in done.stdout
    assert "kubectl delete namespace" in done.stdout or "oc delete namespace atelier" in done.stdout


def test_uninstall_finds_what_the_parts_made_and_minds_no_missing_kind(cluster: Cluster) -> None:
    assert cluster.setup("--with", "all").returncode == 0
    cluster.facts["kinds"] = [kind for kind in ALL if "build" not in kind.group]
    done = cluster.setup("--uninstall")
    assert done.returncode == 0, done.stdout + done.stderr
    left = {name.split("/")[0] for name in cluster.objects}
    kinds = {"namespace", "persistentvolumeclaim", "secret", "imagestreamtag"}
    assert left <= kinds | {"buildconfig"}


def test_a_projects_administrator_needs_no_right_to_the_namespace(cluster: Cluster) -> None:
    """OpenShift's role admin may change the project, but not the namespace behind it."""
    cluster.api.add("v1", "Namespace", "atelier", "")
    cluster.facts["forbidden"] = ["namespaces", "list storageclasses"]
    cluster.facts["nodes"] = None
    done = cluster.setup("--with", "storage")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Namespace atelier is left as it is" in done.stdout
    assert "storage classes were not checked" in done.stdout
    assert "inferenceservice/shapes" in cluster.objects


def test_a_new_image_reaches_the_runtime_and_the_jobs(cluster: Cluster) -> None:
    options = ("--overlay", "sdxl-production", "--with", "storage")
    assert cluster.setup(*options).returncode == 0
    done = cluster.setup(*options, "--image", "registry.example/me/atelier:2")
    assert done.returncode == 0, done.stdout + done.stderr
    there = cluster.objects
    assert there["servingruntime/atelier"]["spec"]["containers"][0]["image"].endswith(":2")
    for job in ("job/atelier-s3-setup", "job/prefetch-sdxl"):
        spec = there[job]["spec"]["template"]["spec"]
        assert spec["containers"][0]["image"] == "registry.example/me/atelier:2"


def test_the_command_for_the_inference_gateway_has_a_token(cluster: Cluster) -> None:
    """Who may get the LLMInferenceService may ask it; the gateway looks at every token."""
    cluster.api.add("v1", "PersistentVolumeClaim", "atelier-models", "atelier")
    done = cluster.setup("--overlay", "llm-inference-service")
    assert done.returncode == 0, done.stdout + done.stderr
    curl = done.stdout.strip().splitlines()[-1]
    assert '-H "Authorization: Bearer $(oc whoami -t)"' in curl
    assert "https://gateway.example.com/atelier/glm-4-7-flash/v1/chat/completions" in curl


def test_an_older_version_that_is_served_beside_the_preferred_one_is_found(
    cluster: Cluster,
) -> None:
    """The preferred versions of LLMInferenceService and LocalQueue are newer ones."""
    done = cluster.setup("--overlay", "llm-inference-service", "--dry-run")
    assert "MISSING  LLMInferenceService" not in done.stdout
    cluster.facts["kinds"] = [k for k in ALL if k.api_version != "kueue.x-k8s.io/v1beta2"]
    assert cluster.setup("--with", "queue").returncode == 0
    assert cluster.objects["localqueue/atelier"]["apiVersion"] == "kueue.x-k8s.io/v1beta1"


@pytest.mark.parametrize(("version", "word"), [(15, "RawDeployment"), (21, "Standard")])
def test_the_deployment_mode_goes_by_the_word_that_the_cluster_keeps(
    cluster: Cluster, version: int, word: str
) -> None:
    cluster.facts["kserve"] = version
    assert cluster.setup().returncode == 0
    annotations = cluster.objects["inferenceservice/shapes"]["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == word
    assert "inferenceservice.serving.kserve.io/shapes unchanged" in cluster.setup().stdout


def test_the_readiness_of_the_old_pods_is_not_that_of_the_change(cluster: Cluster) -> None:
    assert cluster.setup().returncode == 0
    cluster.facts["pods"] = [Moment(ready=True, reconciled=False)]
    done = cluster.setup("--image", "registry.example/me/atelier:2", "--timeout", "1")
    assert done.returncode == 1
    assert "not ready after 1 s" in done.stdout


def test_a_quota_that_stops_the_pods_is_told(cluster: Cluster) -> None:
    cluster.api.add("v1", "Namespace", "atelier", "")
    hard = {"hard": {"limits.memory": "1Gi"}}
    cluster.api.add("v1", "ResourceQuota", "project", "atelier", spec=hard)
    done = cluster.setup("--timeout", "1")
    assert done.returncode == 1
    assert "No pod may be made: " in done.stdout and "exceeded quota" in done.stdout


def test_an_endpoint_asks_for_a_key_unless_it_is_to_be_open(cluster: Cluster) -> None:
    done = cluster.setup()
    assert "secret/atelier-api-keys" in cluster.objects
    assert "--cacert ca.crt" in done.stdout and "curl -k" not in done.stdout
    shut = cluster.objects["inferenceservice/shapes"]["spec"]["predictor"]["model"]["env"]
    assert "API_KEYS" in {entry["name"] for entry in shut}
    assert cluster.setup("--open").returncode == 0
    opened = cluster.objects["inferenceservice/shapes"]["spec"]["predictor"]["model"]["env"]
    assert "API_KEYS" not in {entry["name"] for entry in opened}


@pytest.mark.parametrize(
    "image", ["registry.example/me/atelier:2", f"registry.example/me/atelier@sha256:{'a' * 64}"]
)
def test_an_image_of_ones_own_reaches_the_air_gapped_overlay(cluster: Cluster, image: str) -> None:
    assert cluster.setup("--overlay", "air-gapped", "--image", image).returncode == 0
    runtime = cluster.objects["servingruntime/atelier-air-gapped"]
    assert runtime["spec"]["containers"][0]["image"] == image


def test_a_server_that_does_not_answer_is_told(cluster: Cluster) -> None:
    cluster.environment()
    cluster.api.close()
    done = cluster.setup()
    assert done.returncode == 1
    assert "the API server does not answer" in done.stderr


def test_an_api_of_the_cluster_that_is_down_stops_neither_set_up_nor_uninstall(
    cluster: Cluster,
) -> None:
    """A dead metrics server is common; kubectl then lists the other kinds, and ends with 1."""
    cluster.facts["dead_api"] = "metrics.k8s.io/v1beta1"
    assert cluster.setup().returncode == 0
    done = cluster.setup("--uninstall")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name.split("/")[0] for name in cluster.objects} <= {"namespace", "secret"}


def test_a_project_that_is_being_deleted_is_told_before_anything_is_applied(
    cluster: Cluster,
) -> None:
    cluster.api.add("v1", "Namespace", "atelier", "", status={"phase": "Terminating"})
    done = cluster.setup()
    assert done.returncode == 1
    assert re.search(r"MISSING  project atelier is being deleted.*\n +-> wait", done.stdout)
    assert "nothing was applied" in done.stderr and cluster.changes() == []


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
        [tool, "-x", "setup.sh", "manifests/setup/checks.sh", "manifests/setup/changes.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
