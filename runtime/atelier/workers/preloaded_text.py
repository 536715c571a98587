"""What the worker of a language model imports; `preloaded` has more."""

# ruff: noqa: F401, E402
import os

# Asked through the driver's runtime whether there is a GPU, as diffusers does when it is imported,
# torch refuses CUDA to all forked children; asked through NVML, it does not.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

from tqdm.std import TqdmDefaultWriteLock

# Progress bars are not shared by processes: without this their lock would be a named semaphore that
# nobody removes when the server ends.
TqdmDefaultWriteLock.mp_lock = None

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import atelier.text.embedded.engine
import atelier.text.embedded.loading
import atelier.text.model
