"""Checkpoints made to do harm, or damaged: a fault in words, never a crash, and no code is run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.checkpoint.headers import read_header
from tests.sources.checkpoints import language_model, pipeline

SOUND = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def written(path: Path, header: Any, data: int = 16) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * data)
    return path


def tensor(**changes: Any) -> dict[str, Any]:
    return {"a": SOUND["a"] | changes}


HEADERS: dict[str, Any] = {
    "a list": [1],
    "text": "x",
    "nothing": None,
    "brackets": b"[" * 100_000,
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "no JSON": b"{",
    "no UTF-8": b'{"\xff":1}',
    "an entry of text": {"a": "x"},
    "an entry of a list": {"a": [1, 2, 3]},
    "a negative side": tensor(shape=[-2, -2]),
    "a side of fractions": tensor(shape=[2.0, 2.0]),
    "a side that is true": tensor(shape=[True, 4]),
    "a shape of text": tensor(shape="22"),
    "a side without end": tensor(shape=[2**62, 2**62]),
    "an unknown type": tensor(dtype="X9"),
    "a type of a list": tensor(dtype=["F32"]),
    "offsets of text": tensor(data_offsets=["0", "16"]),
    "offsets backwards": tensor(data_offsets=[16, 0]),
    "negative offsets": tensor(data_offsets=[-16, 0]),
    "one offset": tensor(data_offsets=[16]),
    "an overlap": SOUND | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_is_none_is_named(tmp_path: Path, what: str) -> None:
    path = written(tmp_path / "model.safetensors", HEADERS[what])
    with pytest.raises(CheckpointError, match=r"model\.safetensors") as refused:
        read_header(path)
    assert len(refused.value.message) < 5000


def test_a_sound_header_is_read(tmp_path: Path) -> None:
    assert read_header(written(tmp_path / "m.safetensors", SOUND)).bytes == 16


def test_a_header_with_bytes_changed_is_read_or_named(tmp_path: Path) -> None:
    chance = random.Random(7)
    sound = json.dumps(SOUND).encode()
    for _ in range(2000):
        raw = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        try:
            read_header(written(tmp_path / "m.safetensors", bytes(raw)))
        except CheckpointError:
            continue


CONFIGS: dict[str, dict[str, Any]] = {
    "architectures of a number": {"architectures": 5},
    "architectures of text": {"architectures": "Model"},
    "architectures of numbers": {"architectures": [5]},
    "an unknown type alone": {"architectures": None, "model_type": "nobody"},
    "a type of a list": {"architectures": None, "model_type": ["llama"]},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_of_odd_types_is_named(tmp_path: Path, what: str) -> None:
    folder = language_model(tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text()) | CONFIGS[what]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        inspect(folder)


@pytest.mark.parametrize("mapped", ["code.Model", {"AutoModel": "code.Model"}, ["code.Model"]])
def test_code_of_its_own_is_found_however_it_is_mapped(tmp_path: Path, mapped: Any) -> None:
    folder = language_model(tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": mapped}
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect(folder).remote_code == ("code.py",)


@pytest.mark.parametrize("name", ["../outside", "a/b", "/etc"])
def test_a_component_outside_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = pipeline(tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    index[name] = ["diffusers", "UNet2DConditionModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        inspect(folder)


@pytest.mark.parametrize("raw", ["[" * 100_000, "[]", "5", "\ufeff{", '{"a": '])
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json"])
def test_a_file_of_broken_json_is_named(tmp_path: Path, name: str, raw: str) -> None:
    folder = pipeline(tmp_path / "sd")
    (folder / name).write_text(raw)
    try:
        problems = inspect(folder).problems
    except CheckpointError as error:
        problems = (error.message,)
    assert any(name in problem for problem in problems), problems
