"""GGUF, the form of llama.cpp: which files are the model, wherever they come from, and what those
who cannot read it say."""

import json

import pytest

from atelier.cli.doctor import examine
from atelier.errors import CheckpointError, SourceError, StartError
from atelier.settings import Settings, load_settings
from atelier.sources import hub, inspect
from atelier.sources.checkpoint import gguf
from atelier.text.child.command_line import command_line

REPOSITORY = [
    "README.md",
    "config.json",
    "imatrix.gguf",
    "mmproj-F16.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-Q8_0-00001-of-00002.gguf",
    "tiny-Q8_0-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("files", "variant", "kept"),
    [
        (["a.gguf", "mmproj-a.gguf", "a.mmproj.gguf"], "", ["a.gguf"]),
        (REPOSITORY, "Q4_K_M", ["tiny-Q4_K_M.gguf"]),
        (REPOSITORY, "q8_0", REPOSITORY[-2:]),
        (["x/a-Q4.gguf", "a-Q8.gguf"], "q4", ["x/a-Q4.gguf"]),
        (["model.safetensors", "mmproj.gguf"], "", []),
    ],
)
def test_the_model_is_told_by_the_names(files, variant, kept):
    assert gguf.chosen(files, variant) == kept


@pytest.mark.parametrize("variant", ["", "Q2"])
def test_several_models_are_named_with_the_setting(variant):
    with pytest.raises(ValueError, match=r"VARIANT.*tiny-Q4_K_M, tiny-Q8_0"):
        gguf.chosen(REPOSITORY, variant)


class Listed:
    """A repository of the Hub, as its library tells of one."""

    sha = "a" * 40

    def __init__(self, files):
        self.siblings = [type("File", (), {"rfilename": name, "size": 5}) for name in files]


@pytest.fixture
def repository(monkeypatch):
    def hold(files):
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: Listed(files))

    return hold


def files_of(**settings):
    return hub.file_names(load_settings(model_id="some/tiny", **settings))


def test_the_hub_gives_the_model_and_its_side_files_to_llamacpp(repository):
    repository(REPOSITORY)
    kept = files_of(engine="llamacpp", variant="Q4_K_M")
    assert kept == ["config.json", "tiny-Q4_K_M.gguf"]
    with pytest.raises(SourceError, match="VARIANT"):
        files_of(engine="llamacpp")
    repository(["model.safetensors"])
    with pytest.raises(SourceError, match=r"no \.gguf files"):
        files_of(engine="llamacpp")


def test_the_hub_names_the_engine_to_the_others(repository):
    repository(REPOSITORY)
    with pytest.raises(SourceError, match="ENGINE=llamacpp"):
        files_of()


def test_llamacpp_gets_the_first_part_of_the_model(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").touch()
    for name in REPOSITORY:
        (tmp_path / name).touch()

    def model(**settings):
        given = Settings(engine="llamacpp", engine_path=str(tmp_path), **settings)
        words = command_line(given, tmp_path, tmp_path / "s", 9)
        return words[words.index("--model") + 1]

    assert model(variant="Q8_0").endswith("/tiny-Q8_0-00001-of-00002.gguf")
    with pytest.raises(StartError, match="VARIANT"):
        model()


def test_a_context_is_every_slots_own(tmp_path):
    (tmp_path / "llama-server").touch()
    (tmp_path / "a.gguf").touch()

    def context(**settings):
        given = Settings(engine="llamacpp", engine_path=str(tmp_path), **settings)
        words = command_line(given, tmp_path, tmp_path / "s", 9)
        return words[words.index("--ctx-size") + 1] if "--ctx-size" in words else None

    assert context(max_model_len=8192, max_num_seqs=8) == "65536"
    assert context(max_model_len=8192) == "32768"  # of four slots
    assert context(max_num_seqs=8) is None


def test_doctor_knows_a_folder_of_gguf(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in REPOSITORY[2:]:
        (folder / name).write_bytes(b"GGUF1")

    def found(**settings):
        given = {"model_id": str(folder), "cache_dir": tmp_path / "cache", **settings}
        return examine(load_settings(**given))

    good = found(engine="llamacpp", variant="Q8_0")
    assert good.problems == []
    assert "GGUF model tiny-Q8_0-00001-of-00002.gguf in 2 parts" in good.text()
    (several,) = found(engine="llamacpp").problems
    assert "set VARIANT" in several
    (wrong,) = found().problems
    assert "ENGINE=llamacpp" in wrong
    (folder / "tiny-Q4_K_M.gguf").write_bytes(b"<htm")
    (damaged,) = found(engine="llamacpp", variant="Q4_K_M").problems
    assert "tiny-Q4_K_M.gguf is no GGUF file" in damaged
    one = found(engine="llamacpp", model_id=str(folder / REPOSITORY[-2]))
    assert one.problems == []
    empty = tmp_path / "empty"
    empty.mkdir()
    (nothing,) = found(engine="llamacpp", model_id=str(empty)).problems
    assert "needs a .gguf file" in nothing


@pytest.mark.parametrize("kind", ["file", "folder", "folder with a config"])
def test_the_embedded_engine_names_the_engine_that_reads_it(tmp_path, kind):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    if kind == "folder with a config":
        config = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="ENGINE=llamacpp"):
        inspect(tmp_path / "tiny.gguf" if kind == "file" else tmp_path).check()
