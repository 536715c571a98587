"""A training as a container image that holds it below /models: KServe's modelcar, or a Kubernetes
image volume.

Written as an OCI image layout folder, which needs no daemon and which `skopeo copy oci:FOLDER
docker://...` pushes. Formats: https://github.com/opencontainers/image-spec (image-layout.md,
manifest.md, config.md, layer.md).

KServe starts a modelcar (`oci://`) with `sh`, which a base image has to bring; image volumes
(`oci+native://`) take the data alone.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from atelier_training.dreambooth.errors import PublishError
from atelier_training.dreambooth.publish import is_adapter, result_files

MEDIA = "application/vnd.oci.image"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

Json = dict[str, Any]


@dataclass
class ModelcarImage:
    """What an image is made of: its configuration, and descriptors of its layers."""

    config: Json
    layers: list[Json]


def write_modelcar(trained: Path, name: str, folder: Path, base: Path | None = None) -> str:
    """Write the training in folder `trained` as an image layout into the new `folder`; returns the
    image's digest.

    An adapter lies in /models/NAME, so that LORA_PATHS=/mnt/models finds it by that name; a
    pipeline's folder is /models.

    Args:
        base: image layout of one image with `sh`, `ln` and `sleep`, such as UBI micro; None: the
            data alone.

    Raises:
        PublishError: there is no finished training, `name` is no tag, `folder` is taken, or `base`
            is no layout of one image.
    """
    if not TAG.fullmatch(name):
        raise PublishError(
            f"name={name!r} cannot tag an image: letters, digits, dots, dashes and underscores"
        )
    if folder.exists() and any(folder.iterdir()):
        raise PublishError(f"{folder} is not empty; name a new folder for the image")
    root = f"models/{name}" if is_adapter(trained) else "models"
    files = {
        f"{root}/{file.key.removeprefix('model/')}": file.path for file in result_files(trained)
    }
    part = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    (part / "blobs" / "sha256").mkdir(parents=True)
    image = _read_base(base, part) if base else _no_base()
    layer = _store_layer(part, files)
    image.config["rootfs"]["diff_ids"].append(
        layer["digest"]
    )  # the tar is not compressed: weights hardly shrink
    image.config.setdefault("history", []).append(
        {"created_by": "atelier: a fine-tuned model below /models"}
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _store_json(part, image.config, f"{MEDIA}.config.v1+json"),
        "layers": [*image.layers, layer],
    }
    descriptor = _store_json(part, manifest, f"{MEDIA}.manifest.v1+json")
    tagged = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": name}}
    (part / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (part / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return str(descriptor["digest"])


def _no_base() -> ModelcarImage:
    architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
    return ModelcarImage(
        {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}},
        [],
    )


def _store_layer(layout: Path, files: dict[str, Path]) -> Json:
    """A tar of `files` by their name in the image: the same bytes for the same content, readable by
    every user."""
    temporary = layout / "layer"
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tape:
        for name in sorted(folders):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tape.addfile(entry)
        for name, path in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tape.addfile(entry, file)
    return _store(layout, temporary, f"{MEDIA}.layer.v1.tar")


def _store_json(layout: Path, value: Json, media: str) -> Json:
    temporary = layout / "json"
    temporary.write_text(json.dumps(value))
    return _store(layout, temporary, media)


def _store(layout: Path, file: Path, media: str) -> Json:
    """Give a file of the layout the name of its digest; returns its descriptor."""
    size, digest = file.stat().st_size, _digest(file)
    file.rename(layout / "blobs" / "sha256" / digest)
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": size}


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_base(base: Path, layout: Path) -> ModelcarImage:
    """The base's configuration and layers, whose blobs are checked and copied."""
    try:
        [descriptor] = json.loads((base / "index.json").read_text())["manifests"]
        manifest = json.loads(_blob(base, descriptor).read_text())
        config = json.loads(_blob(base, manifest["config"]).read_text())
        config["rootfs"]["diff_ids"][len(manifest["layers"]) - 1]
        for layer in manifest["layers"]:
            source = _blob(base, layer)
            shutil.copyfile(source, layout / "blobs" / "sha256" / source.name)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise PublishError(
            f"modelcar base {base} is no image layout of one image ({error!r}): make one with "
            f"skopeo copy docker://registry.access.redhat.com/ubi9/ubi-micro:9.6 oci:{base}"
        ) from None
    return ModelcarImage(config, manifest["layers"])


def _blob(base: Path, descriptor: Json) -> Path:
    """The file of a descriptor, whose content has its digest."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    path = base / "blobs" / algorithm / digest
    if _digest(path) != digest:
        raise ValueError(f"{path} is damaged")
    return path
