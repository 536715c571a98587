"""The flat files for `oc apply -f` are what the overlays render to, and the dashboard can list the
runtime."""

from __future__ import annotations

import subprocess
import sys

import yaml

from tests.manifests.rendering import MANIFESTS, needs_kubectl, objects, of_kind

pytestmark = needs_kubectl


def test_templates_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(MANIFESTS / "make_templates.py"), "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_lists_the_runtime() -> None:
    template = yaml.safe_load((MANIFESTS / "templates/openshift-ai-runtime.yaml").read_text())
    assert template["kind"] == "Template"
    assert template["metadata"]["labels"] == {"opendatahub.io/dashboard": "true"}
    annotations = template["metadata"]["annotations"]
    assert annotations["opendatahub.io/modelServingSupport"] == '["single"]'
    assert annotations["opendatahub.io/apiProtocol"] == "REST"
    assert annotations["opendatahub.io/model-type"] == '["generative"]'
    (runtime,) = template["objects"]
    assert runtime["metadata"]["labels"]["opendatahub.io/dashboard"] == "true"
    assert (
        runtime["metadata"]["annotations"]["opendatahub.io/recommended-accelerators"]
        == '["nvidia.com/gpu"]'
    )
    assert "parameters" not in template, (
        "the dashboard reads the object as it is and fills in no parameters"
    )


def test_the_dashboards_runtime_is_the_bases_without_the_gpu() -> None:
    template = yaml.safe_load((MANIFESTS / "templates/openshift-ai-runtime.yaml").read_text())
    base = of_kind(objects("base"), "ServingRuntime")[0]
    wizard = template["objects"][0]["spec"]["containers"][0].pop("resources")
    own = base["spec"]["containers"][0]["resources"]
    assert {part: {**amounts, "nvidia.com/gpu": "1"} for part, amounts in wizard.items()} == own
    kept = {
        key: value for key, value in base["spec"]["containers"][0].items() if key != "resources"
    }
    assert template["objects"][0]["spec"]["containers"] == [kept]
