"""Folders in which the pipeline trains: found again by equal options and pictures alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from atelier_training.dreambooth.errors import TrainingFailed
from atelier_training.dreambooth.workspaces import KEPT_DAYS, workspace_for

OPTIONS = {"steps": 5, "instance_prompt": "a zqx ring"}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Pictures, class pictures, volume."""
    made = tmp_path / "pictures", tmp_path / "class", tmp_path / "volume"
    for folder in made:
        folder.mkdir()
    (made[0] / "one.png").write_bytes(b"one")
    return made


def fail(folders: tuple[Path, Path, Path], **changes: object) -> Path:
    """A training that begins and fails."""
    with pytest.raises(KeyError), workspace_for(OPTIONS | changes, *folders) as place:
        (place / "output").mkdir(exist_ok=True)
        raise KeyError
    return place


def test_what_failed_is_found_again_by_equal_options(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    left = fail(folders)
    assert "beginning the training" in capsys.readouterr().out
    with workspace_for(OPTIONS, *folders) as place:
        assert place == left and (place / "output").is_dir()
    assert "continuing the training" in capsys.readouterr().out
    assert list(folders[2].iterdir()) == [], "what has succeeded is removed"


def test_other_options_or_pictures_are_another_training(folders: tuple[Path, Path, Path]) -> None:
    first = fail(folders)
    assert fail(folders, steps=6) != first
    (folders[0] / "one.png").write_bytes(b"another")
    assert fail(folders) != first
    (folders[1] / "two.png").write_bytes(b"two")
    assert len({fail(folders), *folders[2].iterdir()}) == 4


def test_two_equal_runs_do_not_train_in_one_folder(folders: tuple[Path, Path, Path]) -> None:
    with workspace_for(OPTIONS, *folders):
        with (
            pytest.raises(TrainingFailed, match="another run of equal options"),
            workspace_for(OPTIONS, *folders),
        ):
            pass
        with workspace_for(OPTIONS | {"steps": 7}, *folders):
            pass


def test_what_nobody_comes_back_to_is_removed(folders: tuple[Path, Path, Path]) -> None:
    old, young = fail(folders), fail(folders, steps=6)
    other = folders[2] / "ubi-micro"
    other.mkdir()
    then = time.time() - (KEPT_DAYS + 1) * 86400
    for path in (old / "lock", other):
        os.utime(path, (then, then))
    fail(folders, steps=7)
    assert not old.exists() and young.exists() and other.exists()
