"""Builds the image's cpu target without a daemon: a root file system by mmdebstrap, buildah with
chroot isolation.

Needs root and Debian's buildah, mmdebstrap, podman and runc, which are installed if apt-get can.
This machine's pip configuration is bound into the build, with the folders and certificates it
names, so that a build sees the same packages as the tests do.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.manifests.rendering import ROOT

TOOLS = ("buildah", "mmdebstrap", "podman", "runc")
IMAGE = "localhost/atelier:cpu"
BASE = "localhost/debian-python"
BUILD_SECONDS = 900
WHERE_FROM = {
    *("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS"),
    *("TRUSTED_HOST", "CERT", "PROXY", "DEFAULT_TIMEOUT"),
}
"""pip's settings, as its environment variables spell them."""
STORE_BYTES = 8 * 2**30
"""What base, wheels, layers and a container take together, with room to spare."""


def missing_tools() -> str:
    """Why this machine cannot build, after trying to install what is missing; empty if it can."""
    if os.geteuid() != 0:
        return "building without a daemon needs root"
    if not shutil.which("apt-get"):
        return "the base image is made by Debian's mmdebstrap, and there is no apt-get"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        print(f"installing {', '.join(missing)}", file=sys.stderr)
        quiet = {"capture_output": True, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        done = subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], **quiet
        )
        if done.returncode:
            return f"apt-get cannot install {', '.join(missing)}: {done.stderr.decode()[-300:]}"
    return ""


def store_folder(otherwise: Path) -> Path:
    """Where images are built: in memory if there is room, since a disk takes minutes to write and
    to delete them."""
    memory = Path("/dev/shm")
    if (
        memory.is_dir()
        and shutil.disk_usage(memory).free > STORE_BYTES
        and available_memory() > 2 * STORE_BYTES
    ):
        return Path(tempfile.mkdtemp(prefix="atelier-image-", dir=memory))
    return otherwise


def available_memory() -> int:
    """Bytes that can be taken without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


class Builder:
    """Images and containers in a store of their own below `folder`, which `clean` removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        store = [
            "--root",
            str(folder / "store"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            "overlay",
        ]
        self.buildah = ["buildah", *store]
        self.podman = ["podman", *store, "--runtime", "runc", "--cgroup-manager", "cgroupfs"]

    def base_image(self) -> None:
        """Debian with Python and nothing else, of this machine's release."""
        release = dict(
            line.split("=", 1)
            for line in Path("/etc/os-release").read_text().splitlines()
            if "=" in line
        )
        rootfs = self.folder / "rootfs"
        packages = "--include=ca-certificates,python3,python3-venv"
        run(
            "mmdebstrap",
            "--variant=minbase",
            packages,
            release["VERSION_CODENAME"].strip('"'),
            str(rootfs),
        )
        container = run(*self.buildah, "from", "scratch").strip()
        run(*self.buildah, "add", "-q", container, str(rootfs), "/")
        run(*self.buildah, "commit", "-q", "--rm", container, BASE)
        shutil.rmtree(rootfs)

    def build(self, target: str) -> None:
        """`buildah bud` of the checkout, as `make image CONTAINER_RUNTIME=buildah` calls it."""
        options = ["--isolation", "chroot", "--pull-never", *self._pip_configuration()]
        options += [
            "--build-arg",
            f"BASE_IMAGE={BASE}",
            "--build-arg",
            "TORCH_INDEX=",
            "--build-arg",
            "VERSION=0.0.test",
        ]
        file = [
            "--format",
            "docker",
            "--file",
            str(ROOT / "Containerfile"),
            "--target",
            target,
            "--tag",
            IMAGE,
        ]
        run(*self.buildah, "bud", *options, *file, str(ROOT))

    def _pip_configuration(self) -> list[str]:
        """A pip.conf with this machine's settings and the mounts it needs."""
        lines, mounts = ["[global]"], []
        for number, (key, value) in enumerate(pip_settings()):
            words = value.split()
            for position, word in enumerate(words):
                path = Path(word.removeprefix("file://"))
                if path.is_absolute() and path.exists():
                    inside = f"/run/pip/{number}-{position}"
                    mounts += ["--volume", f"{mount_root(path)}:{inside}:ro"]
                    words[position] = word.replace(str(mount_root(path)), inside)
            lines.append(f"{key} = {' '.join(words)}")
        configuration = self.folder / "pip.conf"
        configuration.write_text("\n".join(lines) + "\n")
        return [*mounts, "--volume", f"{configuration}:/etc/pip.conf:ro"]

    def inspect(self) -> dict[str, Any]:
        """The image as Docker's format describes it; `config` is what a container starts with."""
        return json.loads(run(*self.buildah, "inspect", "--type", "image", IMAGE))["Docker"]

    def clean(self) -> None:
        """Take the mounts away and remove everything."""
        subprocess.run([*self.podman, "rm", "--all", "--force", "--time", "5"], capture_output=True)
        for line in Path("/proc/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(str(self.folder)):
                subprocess.run(["umount", "--lazy", place], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def mount_root(path: Path) -> Path:
    """An index in a folder links to files beside it, so the whole folder above it is needed."""
    return path.parent if path.name == "simple" else path


def pip_settings() -> Iterator[tuple[str, str]]:
    """pip's settings that decide where packages come from; the environment wins over files."""
    settings: dict[str, str] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in ("global", ":env:") and (section == ":env:" or key not in settings):
            settings[key] = "".join(shlex.split(value))
    for key, value in settings.items():
        if key.upper().replace("-", "_") in WHERE_FROM:
            yield key, value


def run(*command: str | Path, timeout: float = BUILD_SECONDS) -> str:
    """Standard output of a command; a failure shows the end of its output."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout
    )
    if done.returncode:
        pytest.fail(
            f"{command[0]} {command[-1]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}",
            pytrace=False,
        )
    return done.stdout
