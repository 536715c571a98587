"""Every notebook runs top to bottom on the built-in models and shows what it says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
SECONDS = 300  # for one cell, on a machine that runs other tests beside it


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[Any]:
    """The cells of the notebook after a run, in a kernel of its own with these environment
    variables."""
    paths = [str(ROOT / "runtime"), str(ROOT)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    for variable, value in {
        "OMP_NUM_THREADS": "1",
        "OUTPUT": str(folder / "output"),
        **variables,
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
    ).execute()
    return list(notebook.cells)


def printed(cells: list[Any]) -> str:
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join(
        output.text
        for output in outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def pictures(cells: list[Any]) -> int:
    """How many cells show a picture."""
    shown = [
        output
        for cell in cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]
    return len(shown)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_cleared(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_experiment_shows_plan_grids_and_batching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = run("1_experiment", tmp_path, monkeypatch, STEPS="12")
    assert "placement" in printed(cells)
    assert pictures(cells) == 2
    assert len(re.findall(r"pictures a second", printed(cells))) == 2
    difference = re.search(r"largest difference of a pixel: (\d+)", printed(cells))
    assert difference and int(difference[1]) <= 2


def test_fine_tune_learns_the_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = run("2_fine_tune", tmp_path, monkeypatch)
    assert pictures(cells) == 3
    scores = dict(re.findall(r"^(\w+) +(\d\.\d\d)$", printed(cells), re.MULTILINE))
    assert float(scores["subject_before"]) == 0
    assert float(scores["subject"]) >= 0.5
    assert (tmp_path / "output" / "pytorch_lora_weights.safetensors").is_file()


def test_remote_inference_goes_through_every_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = run("3_remote_inference", tmp_path, monkeypatch, STEPS="12")
    assert "202 succeeded" in printed(cells)
    assert pictures(cells) == 1


def test_language_calls_the_tool_that_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = run("4_language", tmp_path, monkeypatch)
    assert "a large green square left of" in printed(cells)
    assert "tool_calls generate_image {'prompt': 'a red circle above a blue square'}" in printed(
        cells
    )
    assert pictures(cells) == 1
