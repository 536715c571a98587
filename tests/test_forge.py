"""What a newcomer and a forge find at the top of the repository: a licence, and the same checks
everywhere."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_structure import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "9. Accepting Warranty" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_the_workflow_runs_what_every_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    steps = workflow["jobs"]["checks"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    python = next(step["with"]["python-version"] for step in steps if "with" in step)
    assert PROJECT["project"]["requires-python"].startswith(f">={python},")


def test_hooks_call_the_tools_of_this_checkout() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        program, *arguments = hook["entry"].split()
        assert program.startswith(".venv/bin/") and hook["language"] == "system"
        done = subprocess.run(
            [ROOT / program, *(word for word in arguments if word != "--fix"), *_files(hook)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{hook['id']}: {done.stdout}{done.stderr}"


def _files(hook: dict[str, object]) -> list[str]:
    return ["make/release.py"] if hook.get("pass_filenames", True) else []


def test_editors_and_the_linter_agree_on_the_width() -> None:
    (width,) = re.findall(r"max_line_length = (\d+)", (ROOT / ".editorconfig").read_text())
    assert int(width) == PROJECT["tool"]["ruff"]["line-length"]


@pytest.mark.parametrize("name", ["bug", "wish"])
def test_an_issue_template_has_what_a_forge_reads(name: str) -> None:
    text = (ROOT / f".github/ISSUE_TEMPLATE/{name}.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert set(head) == {"name", "about"}


@pytest.mark.parametrize("target", ["sbom", "image-scan"])
def test_a_missing_tool_is_named(target: str, tmp_path: Path) -> None:
    """`make` with nothing but the shell's own programs on PATH."""
    for program in ("sh", "git", "mkdir", "dirname", "make"):
        for folder in ("/bin", "/usr/bin"):
            if (Path(folder) / program).exists() and not (tmp_path / program).exists():
                (tmp_path / program).symlink_to(Path(folder) / program)
    done = subprocess.run(
        ["/usr/bin/make", target],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "syft is not on PATH" in done.stderr
