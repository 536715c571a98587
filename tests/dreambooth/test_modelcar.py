"""A training becomes an image that container tools read, start as KServe does, and that holds it
below /models."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from atelier.images.adapters import discover
from atelier.settings import load_settings
from atelier.sources.adapters import LORA_FILE, fetch_adapters
from atelier_training.dreambooth.errors import PublishError
from atelier_training.dreambooth.modelcar import write_modelcar
from tests.image.build import missing_tools, run

NAME = "0123456789ab"


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What a training of an adapter leaves, beside its checkpoints."""
    folder = tmp_path / "trained"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("README.md", "training.json", LORA_FILE, "checkpoints/state.pt"):
        (folder / name).write_text(f"content of {name}")
    return folder


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    """The file of a descriptor, which must have its digest and size."""
    path = layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")
    content = path.read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return path


def test_an_image_layout_holds_the_adapter_below_models(trained: Path, tmp_path: Path) -> None:
    digest = write_modelcar(trained, NAME, tmp_path / "car")
    assert json.loads((tmp_path / "car" / "oci-layout").read_text()) == {
        "imageLayoutVersion": "1.0.0"
    }
    [described] = json.loads((tmp_path / "car" / "index.json").read_text())["manifests"]
    assert described["digest"] == digest
    manifest = json.loads(blob(tmp_path / "car", described).read_text())
    config = json.loads(blob(tmp_path / "car", manifest["config"]).read_text())
    [layer] = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    with tarfile.open(blob(tmp_path / "car", layer)) as tape:
        assert all(entry.mode & 0o004 for entry in tape), "an arbitrary user reads them"
        tape.extractall(tmp_path / "root", filter="data")
    assert len(list((tmp_path / "car" / "blobs" / "sha256").iterdir())) == 3
    mounted = tmp_path / "root" / "models"
    assert sorted(path.name for path in (mounted / NAME).iterdir()) == [
        "README.md",
        LORA_FILE,
        "training.json",
    ]
    # As an endpoint has it: LORA_PATHS=/mnt/models.
    assert discover(fetch_adapters(load_settings(lora_paths=[str(mounted)]))) == {
        NAME: mounted / NAME / LORA_FILE
    }


def test_the_same_training_is_the_same_image(trained: Path, tmp_path: Path) -> None:
    first, again = (write_modelcar(trained, NAME, tmp_path / name) for name in ("first", "again"))
    (trained / LORA_FILE).write_text("other weights")
    assert first == again != write_modelcar(trained, NAME, tmp_path / "other")


def test_a_pipeline_is_models_itself(trained: Path, tmp_path: Path) -> None:
    (trained / LORA_FILE).unlink()
    (trained / "model" / "unet").mkdir(parents=True)
    for name in ("model_index.json", "unet/config.json"):
        (trained / "model" / name).write_text("{}")
    write_modelcar(trained, NAME, tmp_path / "car")
    layer = max(
        (tmp_path / "car" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size
    )
    with tarfile.open(layer) as tape:
        assert {"models/model_index.json", "models/unet/config.json", "models/training.json"} < set(
            tape.getnames()
        )


def test_what_cannot_become_an_image_is_named(trained: Path, tmp_path: Path) -> None:
    write_modelcar(trained, NAME, tmp_path / "base")
    weights = max(
        (tmp_path / "base" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size
    )
    weights.write_bytes(b"damaged")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((NAME, tmp_path / "base"), "base is not empty; name a new folder"),
        (("a/b", tmp_path / "car"), "name='a/b' cannot tag an image"),
        (
            (NAME, tmp_path / "car", tmp_path),
            r"base .* is no image layout of one image .*skopeo copy",
        ),
        ((NAME, tmp_path / "car", tmp_path / "base"), r"base .* is damaged"),
    ]
    for arguments, message in cases:
        with pytest.raises(PublishError, match=message):
            write_modelcar(trained, *arguments)
    (trained / "training.json").unlink()
    with pytest.raises(PublishError, match=r"training\.json is missing"):
        write_modelcar(trained, NAME, tmp_path / "car")
    assert not (tmp_path / "car").exists()


@pytest.fixture
def store() -> Iterator[list[str]]:
    """Options that give podman and buildah a store of their own; skipped where they cannot be
    installed."""
    if reason := missing_tools():
        pytest.skip(reason)
    with (
        TemporaryDirectory() as folder
    ):  # podman refuses a run root of more than 50 characters, as tmp_path has
        yield ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]


def shell_layout(store: list[str], folder: Path) -> Path:
    """An image layout with this machine's shell, its tools and their libraries: what UBI micro is
    in a cluster."""
    root = folder / "shell"
    for name in ("sh", "ln", "sleep", "cat"):
        program = shutil.which(name) or ""
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path, target in (
            (program, f"bin/{name}"),
            *((p, p.lstrip("/")) for p in re.findall(r"(/\S+) \(0x", linked)),
        ):
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / target)
    container = run("buildah", *store, "from", "scratch").strip()
    run("buildah", *store, "add", "-q", container, root, "/")
    run("buildah", *store, "commit", "-q", "--rm", container, f"oci:{folder / 'base'}")
    return folder / "base"


def test_podman_reads_the_image_and_starts_it_as_kserve_does(
    store: list[str], trained: Path, tmp_path: Path
) -> None:
    write_modelcar(trained, NAME, tmp_path / "car", base=shell_layout(store, tmp_path))
    podman = ["podman", *store, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
    image = run(*podman, "pull", "-q", f"oci:{tmp_path / 'car'}").strip()
    # KServe's sidecar: a link to its own /models in a folder that the server shares.
    own_root = "/proc/$$/root"  # of the shell, as others see it
    script = f"ln -sf {own_root}/models /mnt/models && cat /mnt/models/{NAME}/{LORA_FILE}"
    user = [
        "--user",
        "1000680000:0",
        "--passwd=false",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/mnt:rw,mode=1777",
    ]
    limits = ["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"]
    assert (
        run(*podman, "run", "--rm", *user, *limits, image, "sh", "-c", script)
        == f"content of {LORA_FILE}"
    )
