"""Folders of language models as people have them: old architectures, configs that name only a type,
configs that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from atelier.errors import CheckpointError
from atelier.settings import Settings
from atelier.sources.checkpoint.folder import inspect
from atelier.sources.kind import kind_of
from atelier.text.embedded.loading import load
from tests.text.running import serving
from tests.text.tiny import make_checkpoint


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    """The tiny model's tokenizer with a GPT-2 of random weights."""
    folder = make_checkpoint(tmp_path / "gpt2")
    config = GPT2Config(vocab_size=262, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_a_gpt2_folder_is_served_as_text(gpt2: Path, tmp_path: Path) -> None:
    with serving(gpt2, tmp_path / "log", MAX_NUM_SEQS="2") as server:
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] >= 1


def test_a_config_that_names_only_its_type_is_a_language_model(gpt2: Path) -> None:
    config = json.loads((gpt2 / "config.json").read_text())
    (gpt2 / "config.json").write_text(json.dumps(config | {"architectures": None}))
    assert kind_of(Settings(model_id=str(gpt2))) == "text"
    assert inspect(gpt2).pipeline_class == "GPT2LMHeadModel"


def test_the_variant_that_is_asked_for_is_loaded(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny")

    def loaded(variant: str) -> torch.Tensor:
        settings = Settings(model_id=str(folder), variant=variant, max_num_seqs=2)
        return load(folder, settings, torch.device("cpu"), torch.float32).model.lm_head.weight

    plain = loaded("").clone()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight *= 2
    model.save_pretrained(folder, variant="twice")
    assert torch.equal(loaded(""), plain)
    assert torch.equal(loaded("twice"), 2 * plain)
    with pytest.raises(CheckpointError, match=r"VARIANT=fp16 is not in this checkpoint; .*: twice"):
        loaded("fp16")
    (folder / "model.safetensors").unlink()
    assert torch.equal(loaded(""), 2 * plain)  # the only one there is


@pytest.mark.parametrize("damage", [lambda text: "\ufeff" + text, lambda text: text[:60]])
def test_a_damaged_config_is_named(gpt2: Path, damage: object) -> None:
    config = gpt2 / "config.json"
    assert callable(damage)
    config.write_text(damage(config.read_text()), encoding="utf-8")
    for look in (lambda: inspect(gpt2), lambda: kind_of(Settings(model_id=str(gpt2)))):
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
            look()
