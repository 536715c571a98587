"""What every worker imports, imported once: workers are forked from the process that has these."""

# ruff: noqa: F401, E402
import os

# Asked through the driver's runtime whether there is a GPU, as diffusers does when it is imported,
# torch refuses CUDA to all forked children; asked through NVML, it does not.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from tqdm.std import TqdmDefaultWriteLock

# Progress bars are not shared by processes: without this their lock would be a named semaphore that
# nobody removes when the server ends.
TqdmDefaultWriteLock.mp_lock = None

import diffusers.loaders
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from transformers import CLIPTextModel

import atelier.images.engine
import atelier.images.follower
import atelier.images.loader
import atelier.images.model
import atelier.text.embedded.engine
import atelier.text.embedded.loading
import atelier.text.model
