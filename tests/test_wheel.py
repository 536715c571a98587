"""The wheel, installed outside of the repository and used beside a stranger's packages: nothing it
needs lies in the repository alone, and nothing it calls can be mistaken for somebody's folder."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.conftest import ROOT, free_port

START_SECONDS = 240
PLACES = {"atelier": ROOT / "runtime", "atelier_training": ROOT / "pipelines"}


def tracked(*folders: str) -> list[Path]:
    """Files that belong to the repository, those not yet committed too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves folders beside its sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in tracked("runtime", "pipelines", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], check=True)
    (built,) = folder.glob("atelier-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel in it.

    Third-party packages are seen through from this environment: torch alone is gigabytes. A line
    of a .pth file adds their folder to sys.path, but does not read the .pth files in it, so the
    editable atelier of this environment, which is one of those, is not found. Were it, the test
    would serve from the repository and prove nothing.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    # A PYTHONPATH to the repository would have pip believe that atelier is there already.
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True, env=apart)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    third_party = sysconfig.get_path("purelib")
    (Path(own.stdout.strip()) / "third_party.pth").write_text(f"{third_party}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody's own with packages that end whoever imports them by mistake."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in ("demo", "pipelines", "runtime", "manifests", "benchmarks", "builtin"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('a package of mine')\n")
    return folder


def run(
    command: list[str | Path], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=clean() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def clean() -> dict[str, str]:
    """This process's variables but those that point Python at the repository."""
    return {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for package, base in PLACES.items():
        folder = base / package
        wanted = {str((ROOT / name).relative_to(base)) for name in tracked(str(folder))}
        assert len(wanted) > 30
        assert wanted <= inside, wanted - inside


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PLACES)


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE"])
def test_the_licence_travels_with_it(name: str, wheel: Path) -> None:
    inside = zipfile.ZipFile(wheel)
    (found,) = (one for one in inside.namelist() if one.endswith(f".dist-info/licenses/{name}"))
    assert inside.read(found) == (ROOT / name).read_bytes()


def test_what_is_imported_there_is_the_wheel(installed: Path, elsewhere: Path) -> None:
    program = (
        "import atelier, atelier_training, atelier.builtin.shapes;"
        "print(atelier.__file__, atelier_training.__file__, atelier.builtin.shapes.__file__)"
    )
    done = run([installed / "python", "-c", program], elsewhere)
    assert done.returncode == 0, done.stderr
    for file in done.stdout.split():
        assert Path(file).is_relative_to(installed.parent), file


MODULES = {
    "atelier": (["settings"], "MODEL_ID"),
    "atelier.cli.train": (["--help"], "--instance-prompt"),
    "atelier.builtin.shapes.evaluate": (["--help"], "usage"),
}


@pytest.mark.parametrize("module", MODULES)
def test_python_m_works_there(module: str, installed: Path, elsewhere: Path) -> None:
    arguments, expected = MODULES[module]
    done = run([installed / "python", "-m", module, *arguments], elsewhere, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.fixture(scope="module")
def served(
    installed: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Base URL of `atelier serve` without any setting but the ports."""
    port = free_port()
    log = tmp_path_factory.mktemp("log") / "log"
    command = [installed / "atelier", "serve", f"--http_port={port}", f"--grpc_port={free_port()}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=elsewhere,
            env=clean() | {"DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
    try:
        ends = time.monotonic() + START_SECONDS
        while not ready(f"http://127.0.0.1:{port}/v2/models/shapes/ready"):
            assert process.poll() is None and time.monotonic() < ends, log.read_text()[-4000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(60) == 0, log.read_text()[-4000:]
    finally:
        process.kill()
        process.wait()


def ready(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_the_built_in_model_draws_from_the_wheel(served: str) -> None:
    answer = httpx.post(
        f"{served}/v1/models/shapes:predict",
        json={"instances": [{"prompt": "a red circle above a blue square"}]},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    picture = base64.b64decode(answer.json()["predictions"][0]["image"]["b64"])
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(2**20) or []) > 10  # it is no blank sheet
