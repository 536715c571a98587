"""`atelier doctor`: what hardware is here, what the checkpoint holds, what the plan would be, and
what is misconfigured.

Everything is read from headers, settings and the operating system; no weights are loaded and
nothing is downloaded. What is only slow or risky is a warning; a problem is what keeps the server
from starting.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from atelier.cli.adapter_report import look_at_adapters
from atelier.errors import AtelierError
from atelier.hardware.choice import OptimizationManager
from atelier.hardware.container import Cgroup, host_memory, usable_cpus
from atelier.hardware.machine import Device, DeviceManager
from atelier.settings import Settings
from atelier.sources.checkpoint import gguf
from atelier.sources.checkpoint.folder import Checkpoint, inspect
from atelier.sources.conditioning import find_conditioning
from atelier.sources.local import BUILT_IN
from atelier.sources.opened import streams
from atelier.units import gib

SHARED_MEMORY = Path("/dev/shm")
LITTLE_SHARED_MEMORY = 2**30
"""Bytes; container engines give 64 MiB, NCCL and worker processes want about a GiB."""


@dataclass
class Examination:
    """What was found. `sections` are titles with lines; `problems` stop a start, `warnings` do
    not."""

    sections: list[tuple[str, list[str]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for a terminal or a log."""
        found = [*self.sections]
        found += [("Warnings", self.warnings)] if self.warnings else []
        found.append(("Problems", self.problems or ["none"]))
        return "\n\n".join(
            "\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in found
        )


def examine(settings: Settings) -> Examination:
    """Look at everything that a start would need, and go on after each problem."""
    report = Examination()
    device = _hardware(settings, report)
    checkpoint = _checkpoint(settings, report)
    if device and checkpoint and checkpoint.kind != "adapter":
        _plan(settings, device, checkpoint, report)
    for check in (_cache, _shared_memory, _data_connection):
        check(settings, report)
    adapters = look_at_adapters(settings, checkpoint)
    report.sections += [("Adapters", adapters.lines)] if adapters.lines else []
    report.warnings += adapters.warnings
    report.problems += [one for one in adapters.problems if one not in report.problems]
    return report


def _hardware(settings: Settings, report: Examination) -> Device | None:
    manager, lines = DeviceManager(settings), []
    for one in manager.all():
        traits = [f"capability {one.capability[0]}.{one.capability[1]}"] if one.capability else []
        traits += [
            name
            for name, there in (
                ("bfloat16", one.bfloat16),
                ("fp8", one.fp8),
                ("MIG slice", one.mig),
            )
            if there
        ]
        free = f"{gib(one.free_bytes)} free of {gib(one.total_bytes)}"
        lines.append(
            f"{one.torch_device:<8} {one.name}: {free}"
            + (f" ({', '.join(traits)})" if traits else "")
        )
    quota = Cgroup().cpu_quota()
    limit = f"quota of {quota:g} CPUs" if quota else "no CPU quota"
    lines.append(f"RAM      {gib(host_memory()[1])} free; {usable_cpus():g} CPUs usable ({limit})")
    report.sections.append(("Hardware", lines))
    try:
        device = manager.select()
    except AtelierError as error:
        report.problems.append(error.message)
        return None
    lines.append(f"chosen   {device.torch_device} (DEVICE={settings.device})")
    return device


def _checkpoint(settings: Settings, report: Examination) -> Checkpoint | None:
    """Inspect the checkpoint where it lies; one that is still to be fetched is asked for at its
    source."""
    try:
        path = _place(settings, report)
        if path is None:
            return None
        if settings.engine == "llamacpp":
            report.sections.append((f"Checkpoint {path}", _gguf(settings, path, report)))
            return None
        found = inspect(
            path,
            variant=settings.variant,
            allow_pickle=settings.allow_pickle,
            trust_remote_code=settings.trust_remote_code,
        )
    except AtelierError as error:
        report.problems.append(error.message)
        return None
    report.sections.append((f"Checkpoint {path}", list(_described(found))))
    report.problems += found.problems
    if found.kind == "adapter":
        report.problems.append(
            f"MODEL_ID={settings.model_id} is an adapter: set it in LORA_PATHS, and a model in"
            " MODEL_ID"
        )
    elif settings.task == "image" and found.kind == "language_model":
        report.problems.append(
            f"TASK=image, but {path} is a language model ({found.pipeline_class})"
        )
    elif settings.task == "text" and found.kind != "language_model":
        report.problems.append(f"TASK=text, but {path} is not a language model")
    report.problems += _unknown_classes(found, settings)
    return found


def _gguf(settings: Settings, path: Path, report: Examination) -> list[str]:
    """The model that llama.cpp would be given; its weights are not read."""
    folder = path.parent if path.is_file() else path
    names = [path.name] if path.is_file() else [one.name for one in path.iterdir()]
    try:
        files = [folder / name for name in gguf.chosen(names, settings.variant)]
    except ValueError as error:
        report.problems.append(f"{path}: {error}")
        return sorted(gguf.models_of(names))
    if not files:
        report.problems.append(f"ENGINE=llamacpp needs a .gguf file, but {path} has none")
        return ["nothing in GGUF"]
    report.problems += [fault for one in files if (fault := gguf.fault_in(one))]
    parts = f" in {len(files)} parts" if len(files) > 1 else ""
    size = sum(one.stat().st_size for one in files)
    return [f"GGUF model {files[0].name}{parts}, {gib(size)}, for llama.cpp"]


def _place(settings: Settings, report: Examination) -> Path | None:
    """Where the checkpoint is on this machine, or None, with a section on what a fetch would
    bring."""
    from atelier.sources import hub, s3, source

    model_id, streamed = settings.model_id, streams(settings)
    remote = not Path(model_id).expanduser().exists() and model_id not in BUILT_IN
    if remote and model_id.startswith("s3://"):
        there, line, lacking = s3.outlook(settings)
    elif remote and source.HUB_ID.fullmatch(model_id):
        there, line, lacking = hub.outlook(settings)
    else:
        return source.fetch(settings)
    if there:
        return there
    if streamed:
        told = [f"not kept on this machine (WEIGHTS_CACHE=off): {line} at every start"]
        report.sections.append((f"Checkpoint {model_id}", told))
        return None
    told = [f"not on this machine yet: {line}", "`atelier fetch` brings it"]
    report.sections.append((f"Checkpoint {model_id}", told))
    free = shutil.disk_usage(_existing(settings.cache_dir)).free
    if lacking > free:
        report.problems.append(
            f"CACHE_DIR={settings.cache_dir} has {gib(free)} free; {model_id} needs {gib(lacking)}"
        )
    return None


def _described(found: Checkpoint) -> Iterator[str]:
    variants = ", ".join(name or "plain" for name in found.variants) or "plain"
    yield (
        f"{found.kind} {found.pipeline_class}".strip()
        + f", {gib(found.bytes)}, variants: {variants}"
    )
    width = max((len(one.name) for one in found.components), default=0)
    for one in found.components:
        what = f"{one.name:<{width}}  {one.class_name}".rstrip()
        packed = f", packed with {one.quantization}" if one.quantization else ""
        held = (
            f": {one.parameters:,} parameters, {gib(one.bytes)} in"
            f" {', '.join(sorted(one.dtypes))}{packed}"
        )
        yield what + (held if one.files else "")
    if found.remote_code:
        yield f"Python code of its own: {', '.join(found.remote_code)}"


RENAMED = {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""Classes that checkpoints of 2022 name, and those that diffusers loads in their place."""


def _unknown_classes(found: Checkpoint, settings: Settings) -> Iterator[str]:
    """Classes that the installed libraries do not have. Their names are listed without importing
    what defines them."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    wanted = [("transformers", found.pipeline_class)] if found.kind == "language_model" else []
    if found.kind in ("pipeline", "single_file") and not found.remote_code:
        wanted = [("diffusers", settings.pipeline_class or found.pipeline_class)]
        wanted += [
            (one.library, one.class_name) for one in found.components if one.library in libraries
        ]
    for library, name in wanted:
        if name and RENAMED.get(name, name) not in dir(libraries[library]):
            yield (
                f"{library} {libraries[library].__version__} has no class {name}, which the"
                " checkpoint needs"
            )


def _plan(settings: Settings, device: Device, checkpoint: Checkpoint, report: Examination) -> None:
    try:
        beside = find_conditioning(settings, checkpoint, here=True)
        plan = OptimizationManager(device, settings, conditioning=beside).plan(checkpoint)
    except AtelierError as error:
        report.problems.append(error.message)
        return
    title, *lines = plan.table().splitlines()
    report.sections.append((title, [line.strip() for line in lines]))
    if settings.dtype not in ("auto", "native", plan.dtype):
        report.warnings.append(
            f"DTYPE={settings.dtype} becomes {plan.dtype}: {plan.reasons['dtype']}"
        )
    if 0 < plan.max_pixels < settings.max_pixels:
        report.warnings.append(
            f"MAX_PIXELS={settings.max_pixels} is more than fits: pictures above"
            f" {plan.max_pixels:,} pixels will fail"
        )
    if plan.placement == "group_offload":
        report.warnings.append(
            "weights are moved block by block at every step, which is slow:"
            f" {plan.reasons['placement']}"
        )


def _cache(settings: Settings, report: Examination) -> None:
    folder = _existing(settings.cache_dir)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        report.problems.append(
            f"CACHE_DIR={settings.cache_dir} cannot be written ({error.strerror}): mount a writable"
            " volume there"
        )


def _shared_memory(settings: Settings, report: Examination) -> None:
    if (
        SHARED_MEMORY.is_dir()
        and (size := shutil.disk_usage(SHARED_MEMORY).total) < LITTLE_SHARED_MEMORY
    ):
        text = "engines with several processes need about a GiB: mount a memory volume there"
        report.warnings.append(f"{SHARED_MEMORY} has only {gib(size)}; {text}")


def _data_connection(settings: Settings, report: Examination) -> None:
    if bool(settings.aws_access_key_id) != bool(settings.aws_secret_access_key):
        report.problems.append(
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are only useful together: one is unset"
        )
    if settings.aws_ca_bundle and not Path(settings.aws_ca_bundle).is_file():
        report.problems.append(f"AWS_CA_BUNDLE={settings.aws_ca_bundle} does not exist")
    if settings.model_id.startswith("s3:") and not settings.model_id.startswith("s3://"):
        report.problems.append(
            f"MODEL_ID={settings.model_id}: an S3 address is written s3://bucket/prefix"
        )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
