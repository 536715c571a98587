"""What `atelier doctor` says of LORA_PATHS and EMBEDDINGS: for each file what it is, the family it
was made for, and why it cannot be used. Told from headers; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.sources.adapters import AdapterSource, fetch_named, local_source, remote_file_names
from atelier.sources.checkpoint.contents import Checkpoint
from atelier.sources.checkpoint.inversions import VARIABLE, inversion_in, word_of


@dataclass
class AdapterReport:
    """`lines` are what can be used, `warnings` what a start leaves out, `problems` stop it."""

    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def look_at_adapters(settings: Settings, checkpoint: Checkpoint | None) -> AdapterReport:
    """Look at everything that the two settings name, against the checkpoint if it is here."""
    report = AdapterReport()
    for entry in settings.lora_paths:
        _look(settings, entry, checkpoint, report)
    try:
        words = fetch_named(settings, VARIABLE, settings.embeddings, here=True)
        for name, path in words.items():
            file = inversion_in(name, path)
            report.lines.append(f"{file.name}: textual inversion, {word_of(name)} in a prompt")
    except AtelierError as error:
        report.problems.append(error.message)
    return report


def _look(
    settings: Settings, entry: str, checkpoint: Checkpoint | None, report: AdapterReport
) -> None:
    try:
        names = remote_file_names(settings, entry)
    except AtelierError as error:
        report.problems.append(error.message)
        return
    if names is None:
        source = local_source(settings, entry)
        told = list(_files(source, checkpoint))
        report.lines += [line for line, fault in told if not fault]
        report.warnings += [f"LORA_PATHS: {line}" for line, fault in told if fault]
        found = bool(told)
    else:
        found = any(name.lower().endswith(".safetensors") for name in names)
    if not found:
        report.problems.append(
            f"LORA_PATHS: neither {entry} nor what lies in it is a LoRA adapter in safetensors"
        )


def _files(source: AdapterSource, checkpoint: Checkpoint | None) -> Iterator[tuple[str, bool]]:
    """A line for each file of an entry, and whether it tells a fault."""
    from atelier.images.adapter_files import look_into, misfit
    from atelier.images.adapters import files_in, named

    for name, file in named(source, files_in(source.path)):
        look = look_into(file)
        fault = look.fault
        if not fault and checkpoint and checkpoint.kind == "pipeline":
            fault = misfit(look, checkpoint.pipeline_class, *_denoisers(checkpoint))
        if fault:
            yield f"{file.name}: {fault}", True
        else:
            yield f"{file.name}: {look}, named {name} in requests", False


def _denoisers(checkpoint: Checkpoint) -> tuple[list[str], object]:
    """The denoisers that a checkpoint has, and the width of text that its UNet takes."""
    found = [name for name in ("unet", "transformer") if checkpoint.component(name)]
    unet = checkpoint.component("unet")
    return found, unet.config.get("cross_attention_dim") if unet else None
