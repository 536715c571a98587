"""What MODEL_ID may be, where nothing has to be downloaded."""

import importlib.machinery
import importlib.util

import pytest

from atelier.errors import SourceError
from atelier.settings import load_settings
from atelier.sources import fetch, inspect
from tests.sources.checkpoints import pipeline


def test_a_folder_and_a_file_are_used_where_they_are(tmp_path):
    root = pipeline(tmp_path / "sd")
    assert fetch(load_settings(model_id=str(root))) == root
    file = root / "unet" / "diffusion_pytorch_model.safetensors"
    assert fetch(load_settings(model_id=str(file))) == file


def test_a_relative_path_means_the_same_in_every_folder(tmp_path, monkeypatch):
    """An engine beside the server is started in a folder of its own."""
    pipeline(tmp_path / "sd")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(model_id="sd", cache_dir="cache")
    found = fetch(settings)
    monkeypatch.chdir("/")
    assert found == tmp_path / "sd"
    assert settings.cache_dir == tmp_path / "cache"


def test_a_path_wins_over_a_built_in_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin" / "shapes").mkdir(parents=True)
    assert (
        fetch(load_settings(model_id="builtin/shapes")).resolve() == tmp_path / "builtin" / "shapes"
    )


def test_a_built_in_model_is_found_beside_the_demo_package(tmp_path, monkeypatch):
    spec = importlib.machinery.ModuleSpec("atelier.builtin", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.chdir("/")
    with pytest.raises(
        SourceError,
        match="MODEL_ID=builtin/scenes: the built-in model is not part of this installation",
    ):
        fetch(load_settings(model_id="builtin/scenes"))
    (tmp_path / "scenes").mkdir()
    assert fetch(load_settings(model_id="builtin/scenes")) == tmp_path / "scenes"


@pytest.mark.parametrize("name", ["shapes", "scenes"])
def test_the_old_name_of_a_built_in_model_works_with_one_warning(
    name, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_ID", f"demo/{name}")
    settings = load_settings()
    assert fetch(settings) == fetch(load_settings(model_id=f"builtin/{name}"))
    assert settings.model_id == f"builtin/{name}"
    assert caplog.messages == [
        f"MODEL_ID=demo/{name} is the old name of MODEL_ID=builtin/{name}: use that"
    ]


def test_a_folder_with_the_old_name_of_a_built_in_model_is_used(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo" / "shapes").mkdir(parents=True)
    assert fetch(load_settings(model_id="demo/shapes")).resolve() == tmp_path / "demo" / "shapes"
    assert not caplog.messages


def test_a_folder_is_copied_whole_into_a_named_one(tmp_path):
    root = pipeline(tmp_path / "sd")
    copied = fetch(load_settings(model_id=str(root)), into=tmp_path / "copy")
    assert inspect(copied).problems == ()
    file = root / "unet" / "diffusion_pytorch_model.safetensors"
    single = fetch(load_settings(model_id=str(file)), into=tmp_path / "one")
    assert single.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "model_id", ["/mnt/models/gone", "./gone", "~/gone", "just-a-name", "a/b/c", "http://x/y"]
)
def test_what_is_nowhere_is_refused(model_id):
    with pytest.raises(
        SourceError, match=r"is not a path on this machine, an s3:// address or a Hub id owner/name"
    ):
        fetch(load_settings(model_id=model_id))


def test_an_empty_name_is_refused():
    with pytest.raises(SourceError, match="MODEL_ID is empty"):
        fetch(load_settings(model_id=""))
