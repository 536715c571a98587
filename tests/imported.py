"""What servers and trainings import, imported once: see `tests.processes`."""

# ruff: noqa: F401
import diffusers.loaders
import kserve
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from transformers import CLIPTextModel

import atelier.agents.running
import atelier.cli.doctor
import atelier.cli.main
import atelier.images.model
import atelier.text.model
import atelier_training.dreambooth.train
