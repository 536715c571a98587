"""What clients are told of an error that a step or a request of the embedded engine met."""

from __future__ import annotations

import torch

from atelier.errors import AtelierError, DeviceOutOfMemory, GenerationFailed


def of_a_step(error: BaseException) -> AtelierError:
    """Told to all requests of a batch whose step failed."""
    if isinstance(error, AtelierError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceOutOfMemory(
            "out of device memory: lower MAX_NUM_SEQS, MAX_MODEL_LEN or MAX_NUM_BATCHED_TOKENS"
        )
    return GenerationFailed(f"the batch failed: {type(error).__name__}: {error}")


def of_a_request(error: Exception) -> AtelierError:
    """Told to the one request that it concerns."""
    return (
        error
        if isinstance(error, AtelierError)
        else GenerationFailed(f"{type(error).__name__}: {error}")
    )
