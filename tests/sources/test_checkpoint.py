"""What `inspect` says of whole and of broken checkpoints."""

import shutil

import pytest

from atelier.errors import CheckpointError
from atelier.sources.checkpoint.folder import inspect
from tests.sources.checkpoints import (
    SHARDS,
    language_model,
    pipeline,
    sharded_unet,
    write_json,
    write_weights,
)


def test_a_pipeline_folder_is_described_component_by_component(tmp_path):
    found = inspect(pipeline(tmp_path / "sd"))
    assert (found.kind, found.pipeline_class, found.problems) == (
        "pipeline",
        "StableDiffusionPipeline",
        (),
    )
    assert [one.name for one in found.weighted] == ["unet", "text_encoder", "vae"]
    unet, text = found.component("unet"), found.component("text_encoder")
    assert (unet.class_name, unet.library, unet.dtype) == (
        "UNet2DConditionModel",
        "diffusers",
        "float32",
    )
    assert (unet.parameters, unet.linear, unet.bytes) == (4 * 2 * 9 + 64, 64, 4 * (4 * 2 * 9 + 64))
    assert (text.parameters, text.linear) == (16 * 8 + 64, 64), (
        "an embedding table is no matrix to quantize"
    )
    assert found.component("tokenizer").files == ()
    assert found.component("safety_checker") is None
    assert found.bytes == sum(
        one.stat().st_size - _header(one) for one in found.path.glob("*/*.safetensors")
    )


def _header(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_shards_are_added_up(tmp_path):
    found = inspect(sharded_unet(tmp_path))
    assert found.problems == ()
    assert found.component("unet").parameters == 128
    assert [one.name for one in found.component("unet").files] == list(SHARDS)


def test_a_missing_shard_is_named(tmp_path):
    (sharded_unet(tmp_path) / "unet" / SHARDS[1]).unlink()
    [problem] = inspect(tmp_path).problems
    assert (
        f"unet/{SHARDS[1]} is listed in diffusion_pytorch_model.safetensors.index.json but missing"
        in problem
    )


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path):
    write_weights(sharded_unet(tmp_path) / "unet" / SHARDS[1], {"other.weight": (8, 8)})
    [problem] = inspect(tmp_path).problems
    assert (
        f"1 tensors are not in the shard named for them, first 'b.weight' in {SHARDS[1]}" in problem
    )


def test_shards_without_their_index_are_named(tmp_path):
    (sharded_unet(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    [problem] = inspect(tmp_path).problems
    assert "the index of the shards" in problem and SHARDS[0] in problem


def test_an_index_may_not_point_outside_its_folder(tmp_path):
    index = sharded_unet(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    write_json(index, {"weight_map": {"a.weight": "../vae/diffusion_pytorch_model.safetensors"}})
    assert any("points outside its folder" in one for one in inspect(tmp_path).problems)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"", "is empty (0 bytes)"),
        (lambda raw: raw[:20], "is cut short inside its header"),
        (lambda raw: raw[:-10], "10 of 544 data bytes are missing"),
        (lambda raw: raw + b"abc", "has 3 bytes more than its header describes"),
        (
            lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "is a Git LFS pointer",
        ),
        (lambda raw: b"\xff" * 64, "is not a safetensors file"),
        (lambda raw: raw[:8] + b"[" + raw[9:], "is not a safetensors file"),
        (lambda raw: raw.replace(b"[8,8]", b"[8,9]"), "of shape [8, 9] and type F32 has 256 bytes"),
        (lambda raw: raw.replace(b'"F32"', b'"F99"'), "is malformed"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, damage, said):
    file = pipeline(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    [problem] = inspect(tmp_path).problems
    assert str(file) in problem and said in problem


def test_a_dangling_link_is_named(tmp_path):
    file = pipeline(tmp_path) / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.symlink_to(tmp_path / "blobs" / "gone")
    assert any(f"{file} cannot be read: No such file" in one for one in inspect(tmp_path).problems)


def test_missing_folders_and_files_are_all_named_at_once(tmp_path):
    pipeline(tmp_path)
    shutil.rmtree(tmp_path / "vae")
    (tmp_path / "text_encoder" / "config.json").unlink()
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    found = inspect(tmp_path)
    assert "vae: AutoencoderKL is listed in model_index.json" in "\n".join(found.problems)
    assert any(
        "text_encoder/config.json of CLIPTextModel is missing" in one for one in found.problems
    )
    assert any("tokenizer: the folder" in one and "is empty" in one for one in found.problems)
    with pytest.raises(CheckpointError, match=r"cannot be loaded:\n.*\n.*\n"):
        found.check()


def test_pickles_are_refused_unless_allowed(tmp_path):
    unet = pipeline(tmp_path) / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.bin")
    [problem] = inspect(tmp_path).problems
    assert (
        "only pickled weights (diffusion_pytorch_model.bin)" in problem
        and "ALLOW_PICKLE=true" in problem
    )
    allowed = inspect(tmp_path, allow_pickle=True)
    assert allowed.problems == () and allowed.component("unet").bytes > 0


def test_safetensors_are_taken_before_pickles(tmp_path):
    (pipeline(tmp_path) / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    found = inspect(tmp_path, allow_pickle=True)
    assert [one.name for one in found.component("unet").files] == [
        "diffusion_pytorch_model.safetensors"
    ]


def _variant(root, name, folders=("unet", "vae", "text_encoder"), keep_plain=True):
    for folder in folders:
        plain = next((root / folder).glob("*model.safetensors"))
        shutil.copy(
            plain, plain.with_name(plain.name.replace(".safetensors", f".{name}.safetensors"))
        )
        if not keep_plain:
            plain.unlink()


def test_plain_files_are_preferred_and_a_variant_is_taken_when_asked(tmp_path):
    _variant(pipeline(tmp_path), "fp16")
    assert inspect(tmp_path).variants == ("", "fp16")
    assert inspect(tmp_path).variant == ""
    chosen = inspect(tmp_path, variant="fp16")
    assert {one.files[0].name.split(".")[1] for one in chosen.weighted} == {"fp16"}


def test_the_only_variant_is_taken_where_plain_files_are_missing(tmp_path):
    _variant(pipeline(tmp_path), "fp16", keep_plain=False)
    found = inspect(tmp_path)
    assert (found.variant, found.problems) == ("fp16", ())


def test_a_component_without_the_variant_falls_back_to_its_plain_files(tmp_path):
    _variant(pipeline(tmp_path), "fp16", folders=("unet",), keep_plain=False)
    found = inspect(tmp_path)
    assert (found.variant, found.problems) == ("fp16", ())
    assert found.component("vae").files[0].name == "diffusion_pytorch_model.safetensors"


def test_a_variant_that_is_not_here_is_refused_with_those_that_are(tmp_path):
    _variant(pipeline(tmp_path), "fp16")
    assert (
        "VARIANT=bf16 is not in this checkpoint; variants here: fp16"
        in inspect(tmp_path, variant="bf16").problems
    )


def test_two_variants_without_plain_files_must_be_chosen_between(tmp_path):
    _variant(pipeline(tmp_path), "fp16")
    _variant(tmp_path, "bf16", keep_plain=False)
    problems = inspect(tmp_path).problems
    assert len(problems) == 3
    assert "set VARIANT to one of ['bf16', 'fp16']" in problems[0]


def test_code_of_its_own_is_reported_and_refused_unless_trusted(tmp_path):
    index = pipeline(tmp_path) / "model_index.json"
    index.write_text(
        index.read_text().replace('["diffusers", "UNet2DConditionModel"]', '["my_unet", "MyUNet"]')
    )
    (tmp_path / "unet" / "my_unet.py").write_text("class MyUNet: ...")
    found = inspect(tmp_path)
    assert found.remote_code == ("unet/my_unet.py",)
    assert any("set TRUST_REMOTE_CODE=true" in one for one in found.problems)
    assert inspect(tmp_path, trust_remote_code=True).problems == ()


def test_a_language_model_is_told_by_its_architecture(tmp_path):
    found = inspect(language_model(tmp_path))
    assert (found.kind, found.pipeline_class, found.problems) == (
        "language_model",
        "Qwen3ForCausalLM",
        (),
    )
    assert found.component("model").dtypes == {"float16": 16 * 8 + 64}


def test_weights_that_are_packed_already_say_by_which_method(tmp_path):
    config = {"architectures": ["X"], "quantization_config": {"quant_method": "awq"}}
    write_json(language_model(tmp_path) / "config.json", config)
    assert inspect(tmp_path).component("model").quantization == "awq"


def test_a_lora_is_told_by_its_file_or_by_its_tensors(tmp_path):
    lora = {"unet.down.lora_A.weight": (4, 8), "unet.down.lora_B.weight": (8, 4)}
    folder = write_weights(tmp_path / "a" / "pytorch_lora_weights.safetensors", lora).parent
    single = write_weights(tmp_path / "b" / "style.safetensors", lora)
    assert [inspect(one).kind for one in (folder, single, single.parent)] == ["adapter"] * 3
    assert inspect(single).component("adapter").parameters == 64


SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (8,),
    "alphas_cumprod": (10,),
}


def test_a_single_file_is_grouped_into_parts_and_its_family_is_told(tmp_path):
    found = inspect(write_weights(tmp_path / "v1.safetensors", SD1))
    assert (found.kind, found.pipeline_class, found.problems) == (
        "single_file",
        "StableDiffusionPipeline",
        (),
    )
    assert {one.name for one in found.components} == {"denoiser", "vae", "text_encoder", "other"}
    inpaint = {**SD1, "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    found = inspect(write_weights(tmp_path / "inpaint.safetensors", inpaint))
    assert found.pipeline_class == "StableDiffusionInpaintPipeline"


def test_a_denoiser_alone_in_a_file_is_no_pipeline(tmp_path):
    file = write_weights(
        tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.norm.key_norm.scale": (8,)}
    )
    found = inspect(file)
    assert found.pipeline_class == "FluxPipeline"
    assert "holds a denoiser without text_encoder and vae" in found.problems[0]


def test_a_folder_one_level_too_high_is_recognised(tmp_path):
    pipeline(tmp_path / "sd15")
    with pytest.raises(CheckpointError, match=r"one level too high: model_index\.json is in sd15"):
        inspect(tmp_path)


def test_what_is_no_checkpoint_is_described(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"is no checkpoint: .* it holds notes\.txt"):
        inspect(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        inspect(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"must be \.safetensors"):
        inspect(tmp_path / "notes.txt")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json cannot be read as JSON"):
        inspect(tmp_path)
