"""The transformer and both text encoders as training sees them: tokens, noisy latents and noise
levels to a loss.

With its T5 muted the pipeline pads every prompt with zero embeddings, 256 by default. They are
equal in every layer (a context has no positions), so training carries STAND_INS of them and adds
log(count / STAND_INS) to their attention scores: exactly the same function at a third of the cost,
and one that learns any count, drawn per sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import Attention
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection

_LEVEL_MEAN, _LEVEL_DEVIATION = 1.7, 1.1  # of the noise level's logit
STAND_INS = 8  # brings 64 + 32 + 8 tokens to a multiple of 8, which attention kernels want


class WeightedKeys:
    """SD3's joint attention with a bias per key: `key_bias` (B, 1, 1, image + context tokens)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        split = hidden_states.shape[1]

        def heads(image: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
            return (
                torch.cat([image, context], dim=1).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            )

        query = heads(attn.to_q(hidden_states), attn.add_q_proj(encoder_hidden_states))
        key = heads(attn.to_k(hidden_states), attn.add_k_proj(encoder_hidden_states))
        value = heads(attn.to_v(hidden_states), attn.add_v_proj(encoder_hidden_states))
        query = torch.cat(
            [attn.norm_q(query[:, :, :split]), attn.norm_added_q(query[:, :, split:])], dim=2
        )
        key = torch.cat(
            [attn.norm_k(key[:, :, :split]), attn.norm_added_k(key[:, :, split:])], dim=2
        )
        mask = key_bias.to(query.dtype).expand(-1, attn.heads, query.shape[2], -1)
        out = F.scaled_dot_product_attention(
            query, key.to(query.dtype), value.to(query.dtype), attn_mask=mask
        )
        out = out.transpose(1, 2).flatten(2)
        image, context = out[:, :split], out[:, split:]
        return attn.to_out[0](image), context if attn.context_pre_only else attn.to_add_out(context)


class Denoiser(torch.nn.Module):
    """A pipeline's transformer and text encoders as one module; `forward` is the flow-matching
    loss."""

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        text_encoder: CLIPTextModelWithProjection,
        text_encoder_2: CLIPTextModelWithProjection,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    @staticmethod
    def of(pipeline: StableDiffusion3Pipeline) -> Denoiser:
        return Denoiser(pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)

    def for_training(self) -> Denoiser:
        """A copy whose attention takes weighted keys; this one keeps the pipeline's attention."""
        trained = copy.deepcopy(self)
        trained.transformer.set_attn_processor(WeightedKeys())
        return trained.train()

    def forward(self, latents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the velocity noise - latents; latents (B, 16, 16, 16) scaled,
        tokens (B, 32)."""
        n, device = latents.shape[0], latents.device
        level = noise_levels(n, device)[:, None, None, None]
        noise = torch.randn_like(latents)
        velocity = self.velocity(
            torch.lerp(latents, noise, level),
            level.flatten() * 1000.0,
            tokens,
            zero_counts(n, device),
        )
        return F.mse_loss(velocity.float(), noise - latents)

    def velocity(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        tokens: torch.Tensor,
        zeros: torch.Tensor,
        residuals: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        """What the pipeline's transformer answers when `zeros` (B,) zero embeddings follow the
        prompt. `residuals` makes those of a control, from the pooled text."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        context = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        context = F.pad(context, (0, 0, 0, STAND_INS))
        keys = noisy.shape[-1] * noisy.shape[-2] // 4 + context.shape[1]
        bias = torch.zeros(len(zeros), 1, 1, keys, device=noisy.device)
        bias[..., -STAND_INS:] = (zeros.clamp(min=1e-4).log() - math.log(STAND_INS))[
            :, None, None, None
        ]
        return self.transformer(
            hidden_states=noisy,
            timestep=timestep,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            block_controlnet_hidden_states=residuals(pooled) if residuals else None,
            joint_attention_kwargs={"key_bias": bias},
            return_dict=False,
        )[0]


def noise_levels(n: int, device: torch.device) -> torch.Tensor:
    """Noise levels in 0..1, logit-normal (arXiv:2403.03206) with a fifth of them uniform so that
    the ends are learnt too.

    Flat shapes repeat the same news in every channel and place of a latent, so noise hides it late:
    the error of the predicted picture falls from all of the layout's variance at 0.96 to a tenth at
    0.8. Most of the learning goes there.
    """
    most = torch.sigmoid(_LEVEL_MEAN + _LEVEL_DEVIATION * torch.randn(n, device=device))
    return torch.where(torch.rand(n, device=device) < 0.2, torch.rand(n, device=device), most)


def zero_counts(n: int, device: torch.device) -> torch.Tensor:
    """How many zero embeddings follow: the default 256 for half of the samples, none for some, else
    between."""
    draw = torch.rand(n, device=device)
    between = torch.exp(torch.rand(n, device=device) * math.log(512.0)).floor()
    counts = torch.where(draw < 0.5, torch.full_like(draw, 256.0), between)
    return torch.where(draw > 0.85, torch.zeros_like(counts), counts)
