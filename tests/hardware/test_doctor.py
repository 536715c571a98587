"""What `atelier doctor` finds, and what it calls a problem."""

import json

import pytest

from atelier.cli import doctor
from atelier.cli.doctor import examine
from atelier.settings import load_settings
from tests.sources.checkpoints import language_model, pipeline, write_weights


@pytest.fixture
def sd(tmp_path):
    return pipeline(tmp_path / "sd")


def report(model_id, tmp_path, **more):
    return examine(
        load_settings(model_id=str(model_id), **{"cache_dir": tmp_path / "cache", **more})
    )


def test_a_sound_installation_has_no_problems_and_shows_hardware_checkpoint_and_plan(sd, tmp_path):
    found = report(sd, tmp_path)
    assert found.problems == []
    text = found.text()
    for said in (
        "Hardware",
        "chosen   cpu",
        "unet",
        "UNet2DConditionModel: 136 parameters",
        "Memory plan for sd",
        "max_rows",
    ):
        assert said in text
    assert text.endswith("Problems\n  none")


def test_every_problem_is_listed_not_the_first_alone(sd, tmp_path):
    (sd / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    found = report(
        sd,
        tmp_path,
        device="cuda:7",
        lora_paths=["/gone"],
        aws_access_key_id="key",
        aws_ca_bundle="/no.pem",
    )
    said = "\n".join(found.problems)
    for part in (
        "DEVICE=cuda:7 is not here",
        "diffusion_pytorch_model.safetensors is empty (0 bytes)",
        "LORA_PATHS=/gone is not a path on this machine",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are only useful together",
        "AWS_CA_BUNDLE=/no.pem does not exist",
    ):
        assert part in said
    assert len(found.problems) == 5


def test_a_model_that_is_nowhere_and_a_hub_model_offline_are_problems(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "is not a path on this machine" in report("/mnt/models/gone", tmp_path).problems[0]
    assert (
        "HF_HUB_OFFLINE=1 forbids asking"
        in report("owner/name", tmp_path, hf_hub_offline=True).problems[0]
    )


def test_a_cache_that_cannot_be_written_is_a_problem(sd, tmp_path):
    [problem] = report(sd, tmp_path, cache_dir="/proc/cache").problems
    assert "CACHE_DIR=/proc/cache cannot be written" in problem


def test_a_plan_that_fails_is_a_problem(sd, tmp_path):
    [problem] = report(sd, tmp_path, quantization="nf4").problems
    assert "QUANTIZATION=nf4 has no backend on" in problem


def test_weights_in_shares_are_told_with_the_reason(sd, tmp_path):
    text = report(sd, tmp_path, sequence_parallel_size=2, shard_weights="true").text()
    [line] = [one.split() for one in text.splitlines() if one.split()[:1] == ["sharding"]]
    assert line[1:] == ["on", "asked", "by", "SHARD_WEIGHTS=true"]
    alone = report(sd, tmp_path, shard_weights="true")
    assert any("set SEQUENCE_PARALLEL_SIZE to their number" in one for one in alone.problems)


def test_a_type_that_is_replaced_is_a_warning(sd, tmp_path):
    found = report(sd, tmp_path, dtype="float16")
    assert found.problems == []
    assert any(one.startswith("DTYPE=float16 becomes") for one in found.warnings)


def test_classes_that_the_libraries_lack_are_problems(sd, tmp_path):
    index = sd / "model_index.json"
    index.write_text(index.read_text().replace("UNet2DConditionModel", "UNet9DModel"))
    [problem] = report(sd, tmp_path).problems
    assert "has no class UNet9DModel, which the checkpoint needs" in problem


def test_a_class_of_2022_that_is_loaded_under_its_new_name_is_none(sd, tmp_path):
    index = json.loads((sd / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (sd / "model_index.json").write_text(json.dumps(index))
    (sd / "feature_extractor").mkdir(exist_ok=True)
    (sd / "feature_extractor" / "preprocessor_config.json").write_text("{}")
    assert report(sd, tmp_path).problems == []


def test_loras_are_found_in_files_folders_and_folders_of_them(sd, tmp_path):
    tensors = {"unet.lora_A.weight": (2, 4), "unet.lora_B.weight": (4, 2)}
    write_weights(tmp_path / "loras" / "style" / "pytorch_lora_weights.safetensors", tensors)
    for path in ("loras", "loras/style", "loras/style/pytorch_lora_weights.safetensors"):
        assert report(sd, tmp_path, lora_paths=[str(tmp_path / path)]).problems == []
    (sd / "unet" / "config.json").write_text('{"cross_attention_dim": 768}')
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    for name, own in (("knit", "hada_w1_b"), ("xl", "lora_down.weight")):
        write_weights(
            tmp_path / "loras" / f"{name}.safetensors",
            {f"{layer}.{own}": (2, 2048 if name == "xl" else 768)},
        )
    write_weights(tmp_path / "loras" / "vae.safetensors", {"decoder.up.0.block.0.weight": (2, 2)})
    found = report(sd, tmp_path, lora_paths=[str(tmp_path / "loras")])
    assert found.problems == []
    text = found.text()
    assert "knit.safetensors: LoHa, kohya layout, for Stable Diffusion 1, named knit in re" in text
    assert "xl.safetensors: it was made for Stable Diffusion XL: its cross attention" in text
    assert "vae.safetensors: it is a VAE: put it into the folder vae" in text
    [problem] = report(sd, tmp_path, lora_paths=[str(sd)]).problems
    assert "is a LoRA adapter" in problem


def test_embeddings_are_told_as_words_of_prompts_or_as_a_problem(sd, tmp_path):
    ring = write_weights(tmp_path / "ring.safetensors", {"emb_params": (2, 8)})
    found = report(sd, tmp_path, embeddings=[f"cup={ring}"])
    assert found.problems == []
    assert "ring.safetensors: textual inversion, <cup> in a prompt" in found.text()
    vae = write_weights(tmp_path / "vae.safetensors", {"decoder.up.0.block.0.weight": (2, 2)})
    [problem] = report(sd, tmp_path, embeddings=[str(vae)]).problems
    assert "EMBEDDINGS: vae is no textual inversion: vae.safetensors: it is a VAE" in problem


def test_adapters_of_one_transformer_are_not_for_another(sd, tmp_path):
    index = json.loads((sd / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusion3Pipeline"
    index["transformer"] = ["diffusers", "SD3Transformer2DModel"]
    del index["unet"]
    (sd / "model_index.json").write_text(json.dumps(index))
    (sd / "unet").rename(sd / "transformer")
    for name, layer in {
        "flux": "lora_unet_double_blocks_0_img_attn_qkv",
        "own": "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "either": "transformer.transformer_blocks.0.attn.to_q",
    }.items():
        file = tmp_path / "loras" / f"{name}.safetensors"
        write_weights(file, {f"{layer}.lora_down.weight": (2, 64)})
    text = report(sd, tmp_path, lora_paths=[str(tmp_path / "loras")]).text()
    assert (
        "flux.safetensors: it was made for FLUX, and StableDiffusion3Pipeline is Stable D" in text
    )
    assert "own.safetensors: LoRA, kohya layout, for Stable Diffusion 3, named own" in text
    assert "either.safetensors: LoRA, diffusers layout, for Stable Diffusion 3 or FLUX" in text


def test_an_adapter_as_model_and_the_wrong_task_are_problems(tmp_path):
    adapter = write_weights(
        tmp_path / "lora.safetensors", {"a.lora_A.weight": (2, 2), "a.lora_B.weight": (2, 2)}
    )
    assert "is an adapter: set it in LORA_PATHS" in report(adapter, tmp_path).problems[0]
    model = language_model(tmp_path / "lm")
    assert "TASK=image, but" in report(model, tmp_path, task="image").problems[0]
    assert report(model, tmp_path).problems == []


def test_little_shared_memory_is_a_warning(sd, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LITTLE_SHARED_MEMORY", 2**60)
    found = report(sd, tmp_path)
    assert found.problems == []
    assert any("mount a memory volume there" in one for one in found.warnings)
