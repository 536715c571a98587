"""What workers import, imported once: they are forked from the process that has these. That of a
language model has `preloaded_text` alone."""

# ruff: noqa: F401
import atelier.workers.preloaded_text  # isort: skip
import diffusers.loaders
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel

import atelier.images.engine
import atelier.images.follower
import atelier.images.loader
import atelier.images.model
