"""docs/deploying.md names only what exists, and its sizing table is what the memory plan says
today."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from atelier.cli.deploy import app as deploy
from atelier.cli.main import app as atelier
from tests.manifests.rendering import MANIFESTS, ROOT

PAGE = (ROOT / "docs/deploying.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", "").splitlines()
]


def test_the_sizing_table_is_current() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}{os.pathsep}{ROOT}"}
    command = [sys.executable, str(ROOT / "docs/sizing.py"), "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert PAGE.count("GiB |") >= 5


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`?((?:manifests|components)/[\w./-]+[\w])", PAGE)))
)
def test_a_path_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists() or (MANIFESTS / path).exists()


def test_every_overlay_is_described() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| [^|]+ \| [^|]+ \|$", PAGE, re.MULTILINE)
    described = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    overlays = {path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml")}
    assert overlays <= described


def test_the_commands_take_the_options_that_are_shown() -> None:
    usage = subprocess.run(
        ["bash", str(ROOT / "setup.sh"), "--help"], capture_output=True, text=True
    ).stdout
    for line in COMMANDS:
        words = line.split("#")[0].split()
        options = {word for word in words if word.startswith("--")}
        if words[:1] == ["./setup.sh"]:
            assert all(option in usage for option in options), line
        elif words[:2] == ["atelier", "deploy"]:
            shown = CliRunner().invoke(deploy, [words[2], "--help"], env={"COLUMNS": "200"})
            assert shown.exit_code == 0, line
            assert all(option in shown.stdout for option in options), line
    assert CliRunner().invoke(atelier, ["doctor", "--help"]).exit_code == 0


def test_the_make_targets_that_are_shown_exist() -> None:
    named = set(re.findall(r"(?:^|`|&& )make ([a-z-]+)\b", PAGE, re.MULTILINE))
    assert {"image", "push", "sizing"} <= named
    makefiles = "".join(
        path.read_text() for path in [ROOT / "Makefile", *sorted((ROOT / "make").glob("*.mk"))]
    )
    for target in named:
        assert re.search(rf"^{target}:", makefiles, re.MULTILINE), target


def test_the_symptoms_of_the_field_are_explained() -> None:
    for symptom in (
        *(
            "Killed while loading",
            "no line in the log",
            "C compiler",
            "libnuma",
            "504 after 30 s",
            "storage-initializer",
        ),
        *("Permission denied", "traffic before the model was loaded", "ProgressDeadlineExceeded"),
    ):
        assert symptom in PAGE, symptom
