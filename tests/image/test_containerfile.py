"""Rules of the Containerfile that need no build, and that everything that builds it builds the
same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendering import ROOT, needs_kubectl, objects, of_kind
from tests.test_extras import declared, installed_with

TEXT = (ROOT / "Containerfile").read_text()
INSTRUCTIONS = [
    line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
]
STAGES = re.findall(r"^FROM (\S+) AS (\S+)", TEXT, re.MULTILINE)
TARGETS = {"cpu", "runtime", "engine-vllm", "studio", "prewarmed", "modelcar"}


def block(target: str) -> str:
    """The instructions of a stage."""
    return TEXT.split(f" AS {target}\n", 1)[1].split("\nFROM ", 1)[0]


def test_every_target_is_there_and_runtime_is_the_default() -> None:
    assert {name for _, name in STAGES} >= TARGETS
    assert INSTRUCTIONS[-1] == "FROM runtime"


def test_base_images_are_arguments_and_pinned() -> None:
    defaults = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)", TEXT, re.MULTILINE))
    stages = {name for _, name in STAGES} | {"flash-attn-${FLASH_ATTN}"}
    for source, _ in STAGES:
        assert source in stages or source in {f"${{{name}}}" for name in defaults}, source
    for reference in defaults.values():
        assert re.search(r":\d+\.\d+", reference), reference


def test_no_token_can_reach_a_layer() -> None:
    for line in INSTRUCTIONS:
        if line.startswith(("ARG", "ENV", "COPY")):
            assert not re.search("TOKEN|SECRET|PASSWORD", line), line
    uses = [line for line in INSTRUCTIONS if "HF_TOKEN" in line]
    assert len(uses) == 1 and "--mount=type=secret,id=hf_token" in uses[0]


def test_every_served_target_ends_without_root() -> None:
    for target in ("cpu", "runtime", "engine-vllm", "studio"):
        assert re.findall(r"^USER (\S+)", block(target), re.MULTILINE)[-1] == "1001:0", target


def test_gradio_is_in_the_image_of_the_studio_alone() -> None:
    (first,) = re.findall(r'for name in \(("[^)]+)\)', TEXT)
    named = {"wheels": re.findall(r"\w+", first)} | {
        target: re.findall(r"\w+", ",".join(re.findall(r"atelier\[(.+?)\]", block(target))))
        for target in ("cpu", "runtime", "engine-vllm", "studio")
    }
    assert named["cpu"] and named["runtime"]
    with_gradio = {
        place
        for place, extras in named.items()
        if "gradio" in installed_with(set().union(*map(declared, extras)))
    }
    assert with_gradio == {"studio"}


def test_the_build_sees_the_sources_and_nothing_else() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        word.split("/")[0]
        for line in INSTRUCTIONS
        if line.startswith("COPY")
        for word in line.split()[1:-1]
    }
    assert {word for word in copied if not word.startswith(("--", "/"))} and "" not in allowed
    assert {word for word in copied if word and not word.startswith("--")} <= allowed


@needs_kubectl
def test_the_image_and_the_manifests_agree_on_where_things_are_written() -> None:
    container = of_kind(objects("base"), "ServingRuntime")[0]["spec"]["containers"][0]
    manifest = {entry["name"]: entry.get("value") for entry in container["env"]}
    image = dict(re.findall(r"(\w+)=(/cache/\S+)", TEXT))
    assert image and image.items() <= manifest.items()


@pytest.mark.parametrize("tool", ["podman", "docker", "buildah"])
def test_make_image_calls_the_chosen_tool(tool: str) -> None:
    done = subprocess.run(
        [
            "make",
            "--dry-run",
            "image",
            f"CONTAINER_RUNTIME={tool}",
            "TARGET=engine-vllm",
            "HF_TOKEN_FILE=t",
            "MODEL_ID=a/b",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{tool} {'bud' if tool == 'buildah' else 'build'} " in done.stdout
    assert "--target engine-vllm" in done.stdout
    assert "--secret id=hf_token,src=t" in done.stdout
    tag = re.search(r"--tag (\S+)", done.stdout)
    assert tag and re.search(r":[\w.]+-vllm$", tag[1])
    assert ":latest" not in done.stdout


def test_cloud_build_and_tekton_build_the_same_with_the_token_from_a_secret() -> None:
    cloud = (ROOT / "cloudbuild.yaml").read_text()
    task = (ROOT / "manifests/setup/tekton/task.yaml").read_text()
    for text in (cloud, task):
        assert "--file Containerfile" in text and "--target" in text
        assert re.search(r"--secret \W?id=hf_token", text)
        assert ":latest" not in text
    document = yaml.safe_load(cloud)
    assert document["steps"][0]["secretEnv"] == ["HF_TOKEN"]
    assert document["availableSecrets"]["secretManager"][0]["env"] == "HF_TOKEN"


@needs_kubectl
def test_the_tekton_pipeline_fills_every_parameter_of_its_task() -> None:
    docs = objects("setup/tekton")
    task, pipeline = of_kind(docs, "Task")[0]["spec"], of_kind(docs, "Pipeline")[0]["spec"]
    (step,) = pipeline["tasks"]
    given = {entry["name"]: entry["value"] for entry in step["params"]}
    assert given.keys() == {entry["name"] for entry in task["params"]}
    known = {entry["name"] for entry in pipeline["params"]}
    assert {re.fullmatch(r"\$\(params\.([\w-]+)\)", value)[1] for value in given.values()} == known  # type: ignore[index]
    assert {entry["name"] for entry in step["workspaces"]} == {
        entry["name"] for entry in task["workspaces"]
    }
    for each in task["steps"]:
        assert "$(params" not in each["script"], "a parameter inside a script would be run as shell"
        assert re.search(r":v\d+\.\d+", each["image"])


def test_the_script_that_checks_weights_passes_shellcheck() -> None:
    tool = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(pytest.__file__).parents[4] / "bin")
    )
    assert tool, "pip install '.[dev]' brings shellcheck"
    subprocess.run([tool, str(ROOT / "containers/check_load.sh")], check=True)
