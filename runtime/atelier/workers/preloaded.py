"""What every worker imports, imported once: workers are forked from the process that has these."""

# ruff: noqa: F401
import diffusers.loaders
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel

import atelier.images.engine
import atelier.images.loader
import atelier.images.model
