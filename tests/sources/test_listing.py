"""Folders as people have them: what systems leave beside the files, names in any case, folders in
folders."""

import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from atelier.errors import CheckpointError
from atelier.images.adapter_files import look_into
from atelier.images.adapters import discover
from atelier.settings import load_settings
from atelier.sources.adapters import local_source
from atelier.sources.checkpoint import gguf
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.checkpoint.inversions import inversion_in
from atelier.sources.checkpoint.listing import is_left_behind

KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_"
LEFT = (
    "._ring.safetensors",
    "__MACOSX/ring.safetensors",
    "@eaDir/adapter_model.safetensors",
    "lost+found/adapter_model.safetensors",
    ".ipynb_checkpoints/ring-checkpoint.safetensors",
    "..2026_11_29/ring.safetensors",
    "Thumbs.db",
)


def adapter(path: Path, dtype: str = "float16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{KEY}A.weight": np.zeros((4, 768), dtype)}, path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(discover([local_source(load_settings(), str(folder))]))


LAYOUTS: dict[str, tuple[list[str], list[str]]] = {
    "letters of any case": (["Ring.SAFETENSORS", "cup.SafeTensors"], ["Ring", "cup"]),
    "folders": (["ring.safetensors", "sdxl/cup.safetensors"], ["cup", "ring"]),
    "one name in folders": (["ring/lora.safetensors", "cup/lora.safetensors"], ["cup", "ring"]),
    "what systems leave": (["ring.safetensors", *LEFT], ["ring"]),
    "one that PEFT wrote": (
        ["adapter_model.safetensors", "checkpoint-9/adapter_model.safetensors"],
        ["loras"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_are_found_in_every_layout(tmp_path: Path, layout: str) -> None:
    files, wanted = LAYOUTS[layout]
    for file in files:
        adapter(tmp_path / "loras" / file)
    assert names(tmp_path / "loras") == wanted


def test_a_mounted_configmap_is_read_through_its_links(tmp_path: Path) -> None:
    adapter(tmp_path / "..2026" / "ring.safetensors")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "ring.safetensors").symlink_to("..data/ring.safetensors")
    assert names(tmp_path) == ["ring"]


def test_pickles_in_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "adapter_model.BIN").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(adapter_model\.BIN\)"):
        names(tmp_path)


def test_an_adapter_of_whole_numbers_is_told(tmp_path: Path) -> None:
    look = look_into(adapter(tmp_path / "ring.safetensors", "int8"))
    assert look.fault == "its weights are int8, not floating-point numbers"


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2FNUZ"])
def test_an_adapter_of_eight_bits_is_one(tmp_path: Path, dtype: str) -> None:
    header = f'{{"{KEY}A.weight":{{"dtype":"{dtype}","shape":[4,8],"data_offsets":[0,32]}}}}'
    path = tmp_path / "ring.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(32))
    assert look_into(path).fault == ""


def test_a_model_in_one_file_is_found_beside_what_systems_leave(tmp_path: Path) -> None:
    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((8, 4, 3, 3), "float16")},
        tmp_path / "sd.safetensors",
    )
    for file in (*LEFT, ".DS_Store", "desktop.ini"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"\0")
    assert inspect(tmp_path).pipeline_class == "StableDiffusionPipeline"


def test_an_adapter_and_an_inversion_are_found_beside_what_systems_leave(tmp_path: Path) -> None:
    adapter(tmp_path / "lora" / "ring.safetensors")
    (tmp_path / "lora" / "._ring.safetensors").write_bytes(b"\0")
    assert inspect(tmp_path / "lora").kind == "adapter"
    (tmp_path / "word").mkdir()
    save_file({"emb_params": np.zeros((2, 768), "float16")}, tmp_path / "word" / "Ring.SAFETENSORS")
    (tmp_path / "word" / "._Ring.SAFETENSORS").write_bytes(b"\0")
    assert inversion_in("ring", tmp_path / "word").name == "Ring.SAFETENSORS"


def test_a_hidden_gguf_is_no_model() -> None:
    assert gguf.chosen(["._gemma-Q4_K_M.gguf", "gemma-Q4_K_M.gguf"], "") == ["gemma-Q4_K_M.gguf"]


@pytest.mark.parametrize("name", ["model.safetensors", "unet", "loose.db", "v1.0"])
def test_what_a_user_put_there_is_not_left_behind(name: str) -> None:
    assert not is_left_behind(name)
