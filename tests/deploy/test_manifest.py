"""What `atelier deploy render` writes: valid for KServe, and the same as manifests/ says by
hand."""

from __future__ import annotations

from typing import Any

import pytest

from atelier.deploy.manifest import GPUS, DeployError, Endpoint, render
from tests.manifests import validation
from tests.manifests.rendering import combine, needs_kubectl, objects, of_kind

SOURCES = {
    "black-forest-labs/FLUX.1-dev": {},
    "owner/name@0123abc": {},
    "builtin/shapes": {},
    "s3://models/sd35": {
        "storage": {
            "key": "atelier-models",
            "path": "sd35",
            "parameters": {"type": "s3", "bucket": "models"},
        }
    },
    "pvc://weights/sdxl": {"storageUri": "pvc://weights/sdxl"},
    "oci://registry.example/models/sdxl:1.0": {
        "storageUri": "oci://registry.example/models/sdxl:1.0"
    },
}


def model_of(endpoint: Endpoint) -> dict[str, Any]:
    return render(endpoint)["spec"]["predictor"]["model"]


def env_of(endpoint: Endpoint) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom"))
        for entry in model_of(endpoint)["env"]
    }


@pytest.mark.parametrize("gpu", ["cpu", *GPUS])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_rendered_is_valid(source: str, gpu: str) -> None:
    endpoint = Endpoint(
        "sdxl",
        source,
        gpu=gpu,
        connection="atelier-models",
        profile="sdxl",
        expose=True,
        token=True,
    )
    assert validation.errors([render(endpoint)]) == []


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_reaches_the_server_by_storage_or_by_name(source: str) -> None:
    model = model_of(Endpoint("m", source, connection="atelier-models"))
    storage = {key: model[key] for key in ("storage", "storageUri") if key in model}
    assert storage == SOURCES[source]
    assert model["env"][0] == {"name": "MODEL_ID", "value": "/mnt/models" if storage else source}
    assert model["modelFormat"]["name"] == ("diffusers" if storage else "huggingface")


@needs_kubectl
@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_asks_for_the_same_as_its_component(gpu: str, tmp_path: Any) -> None:
    by_hand = of_kind(combine(tmp_path, "base", [f"gpu-{gpu}"]), "InferenceService")[0]["spec"][
        "predictor"
    ]
    ours = render(Endpoint("m", "builtin/shapes", gpu=gpu))["spec"]["predictor"]
    assert ours["model"]["resources"] == by_hand["model"]["resources"]
    assert ours["tolerations"] == by_hand["tolerations"]
    size = {"name": "MAX_BATCH_SIZE", "value": str(GPUS[gpu].max_batch_size)}
    assert size in by_hand["model"]["env"] and size in ours["model"]["env"]
    wanted = by_hand.get("nodeSelector", {}).get("nvidia.com/gpu.product")
    terms = (by_hand if wanted is None else ours)["affinity"]["nodeAffinity"]
    values = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0][
        "matchExpressions"
    ][0]
    assert tuple(values["values"]) == GPUS[gpu].products
    assert wanted in (None, *GPUS[gpu].products)


def test_the_platforms_hardware_profile_and_queue_are_named() -> None:
    endpoint = Endpoint(
        "m", "builtin/shapes", hardware_profile="redhat-ods-applications/l40s", queue="atelier"
    )
    document = render(endpoint)
    assert validation.errors([document]) == []
    annotations = document["metadata"]["annotations"]
    assert annotations["opendatahub.io/hardware-profile-name"] == "l40s"
    assert annotations["opendatahub.io/hardware-profile-namespace"] == "redhat-ods-applications"
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "atelier"


@needs_kubectl
def test_a_cpu_endpoint_is_the_dev_overlays() -> None:
    by_hand = of_kind(objects("overlays/dev"), "InferenceService")[0]
    endpoint = Endpoint("shapes", "builtin/shapes", expose=True, open=True)
    assert render(endpoint) == by_hand


def test_the_old_name_of_a_built_in_model_is_rendered_as_the_new_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = render(Endpoint("shapes", "demo/shapes"))
    assert caplog.messages == [
        "MODEL_ID=demo/shapes is the old name of MODEL_ID=builtin/shapes: use that"
    ]
    assert old == render(Endpoint("shapes", "builtin/shapes"))
    assert "HF_TOKEN" not in env_of(Endpoint("shapes", "demo/scenes"))


def test_adapters_on_s3_give_the_server_the_connections_keys() -> None:
    env = {"LORA_PATHS": "s3://models/loras/ring"}
    given = env_of(Endpoint("m", "builtin/shapes", connection="atelier-models", env=env))
    key = given["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]
    assert (key["name"], key["key"]) == ("atelier-models", "AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DeployError, match="connection"):
        render(Endpoint("m", "builtin/shapes", env=env))


def test_several_gpus_are_asked_for_and_told_to_the_engine() -> None:
    endpoint = Endpoint(
        "m", "zai-org/GLM-4.7-Flash", gpu="a10g", gpus=2, profile="glm-4.7-flash-awq"
    )
    assert model_of(endpoint)["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert env_of(endpoint)["TENSOR_PARALLEL_SIZE"] == "2"
    assert env_of(endpoint)["PROFILE"] == "glm-4.7-flash-awq"


def test_a_variable_given_by_the_caller_wins() -> None:
    assert (
        env_of(Endpoint("m", "a/b", gpu="l40s", env={"MAX_BATCH_SIZE": "2"}))["MAX_BATCH_SIZE"]
        == "2"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Not_A_Name"}, "name='Not_A_Name'"),
        ({"name": "a" * 54}, "at most 53"),
        ({"gpu": "b200"}, "choose cpu, h100, l40s, a10g"),
        ({"gpus": 2}, "gpus=2"),
        ({"source": "s3://models/x"}, "needs a connection"),
        ({"source": "s3://models", "connection": "c"}, "names no folder"),
        ({"source": "/mnt/models"}, "is none of"),
        ({"min_replicas": 3}, "replicas 3 to 1"),
        ({"expose": True}, "exposed to anybody"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DeployError, match=message):
        Endpoint(**{"name": "m", "source": "builtin/shapes", **fields})
