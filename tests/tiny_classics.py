"""More families for `tiny_pipelines`: cross-attention transformers, unCLIP pairs, few-step and
autoregressive models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    KandinskyV22CombinedPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PriorTransformer,
    SanaPipeline,
    SanaTransformer2DModel,
    StableDiffusionPAGPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)

from tests import tiny_encoders as encoders
from tests.tiny_families import deep_vae, save
from tests.tiny_pipelines import (
    TEXT_WIDTH,
    clip_text_model,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
    vae,
)


def pixart_sigma(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        sample_size=32,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    pipeline = PixArtSigmaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    return save(pipeline, root, "pixart-sigma")


def sana(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=TEXT_WIDTH,
        sample_size=32,
    )
    pipeline = SanaPipeline(
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 16),
            decoder_block_out_channels=(8, 16),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
        ),
        text_encoder=encoders.gemma2(),
        tokenizer=encoders.gemma_tokenizer(),
    )
    return save(pipeline, root, "sana")


def hunyuan_dit(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        sample_size=32,
        hidden_size=32,
        num_layers=2,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_dim_t5=TEXT_WIDTH,
        pooled_projection_dim=16,
    )
    pipeline = HunyuanDiTPipeline(
        vae=deep_vae(),
        text_encoder=encoders.bert(),
        tokenizer=encoders.bert_tokenizer(),
        transformer=transformer,
        scheduler=DDPMScheduler(prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
    return save(pipeline, root, "hunyuan-dit")


def _movq() -> VQModel:
    movq = VQModel(
        block_out_channels=(32, 64),  # its norms have 32 groups, whatever norm_num_groups says
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    movq.decoder.conv_out.weight.data *= (
        0.1  # or its values lie far outside of -1..1, and rounding shows
    )
    return movq


def kandinsky_22(root: Path, seed: int = 0) -> Path:
    """Prior and decoder in one pipeline, which holds the two as pipelines of their own."""
    torch.manual_seed(seed)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=TEXT_WIDTH,
        num_embeddings=77,
    )
    torch.nn.init.ones_(prior.clip_std)
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
    )
    pipeline = KandinskyV22CombinedPipeline(
        unet=unet,
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False),
        movq=_movq(),
        prior_prior=prior,
        prior_image_encoder=encoders.clip_vision(),
        prior_text_encoder=clip_text_model(with_projection=True),
        prior_tokenizer=clip_tokenizer(),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0
        ),
        prior_image_processor=encoders.clip_image_processor(),
    )
    return save(pipeline, root, "kandinsky-22")


def kandinsky_3(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    unet = Kandinsky3UNet(
        time_embedding_dim=16,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=16,
        encoder_hid_dim=TEXT_WIDTH,
    )
    pipeline = Kandinsky3Pipeline(
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False),
        movq=_movq(),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
    )
    return save(pipeline, root, "kandinsky-3")


def kandinsky_5(root: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=TEXT_WIDTH,
        in_text_dim2=TEXT_WIDTH,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
    )
    pipeline = Kandinsky5T2IPipeline(
        transformer=transformer,
        vae=deep_vae(),
        text_encoder=encoders.qwen_vl(),
        tokenizer=encoders.byte_tokenizer(),
        text_encoder_2=clip_text_model(),
        tokenizer_2=clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return save(pipeline, root, "kandinsky-5")


def _guided_unet(**config: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=TEXT_WIDTH,
        **config,
    )


def latent_consistency(root: Path, seed: int = 0) -> Path:
    """LCM: the guidance scale is an input of the UNet, four steps are enough."""
    torch.manual_seed(seed)
    pipeline = LatentConsistencyModelPipeline(
        unet=_guided_unet(time_cond_proj_dim=32),
        scheduler=LCMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
        ),
        vae=vae(),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return save(pipeline, root, "latent-consistency")


def perturbed_attention(root: Path, seed: int = 0) -> Path:
    """PAG exchanges attention processors of the shared UNet while it draws."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPAGPipeline(
        unet=_guided_unet(),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="scaled_linear"),
        vae=vae(),
        text_encoder=clip_text_model(),
        tokenizer=clip_tokenizer(),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
        pag_applied_layers="mid",
    )
    return save(pipeline, root, "perturbed-attention")


def glm_image(root: Path, seed: int = 0) -> Path:
    """GLM-Image: a language model writes picture tokens, a diffusion decoder draws them. Fixed
    factors: 32 pixels a token."""
    torch.manual_seed(seed)
    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=64 + 2,  # start and end of a picture may be drawn too
    )
    pipeline = GlmImagePipeline(
        tokenizer=encoders.ByT5Tokenizer(),
        processor=encoders.glm_image_processor(),
        text_encoder=encoders.byt5(),
        vision_language_encoder=encoders.glm_image(codes=64),
        vae=deep_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75
        ),
    )
    return save(pipeline, root, "glm-image")


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "pixart-sigma": pixart_sigma,
    "sana": sana,
    "hunyuan-dit": hunyuan_dit,
    "kandinsky-22": kandinsky_22,
    "kandinsky-3": kandinsky_3,
    "kandinsky-5": kandinsky_5,
    "lcm": latent_consistency,
    "pag": perturbed_attention,
    "glm-image": glm_image,
}
