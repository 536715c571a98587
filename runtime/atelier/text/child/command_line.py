"""The command that starts a child engine, from its row and the settings. Options that are known to
hurt are refused with the reason and the remedy."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from atelier.errors import StartError
from atelier.hardware.container import usable_cpus
from atelier.settings import Settings
from atelier.sources.adapters import fetch_adapters
from atelier.sources.checkpoint.gguf import chosen
from atelier.sources.source import fetch_draft
from atelier.text.child.specs import VLLM, EngineSpec, spec_for
from atelier.text.child.tool_parsers import parser_for
from atelier.text.refused_settings import check_guesses

log = logging.getLogger(__name__)

QUANTIZATIONS = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "fp8": "fp8"}


def command_line(settings: Settings, model: Path, socket: Path, port: int) -> list[str]:
    """The child's command; adapters are fetched for it.

    Raises:
        StartError: the engine is not installed where ENGINE_PATH says, or an option is refused.
    """
    spec = spec_for(settings)
    template = spec.image_command if settings.task == "image" else spec.command
    if not template:
        raise StartError(
            f"ENGINE={spec.name} serves no image models: use ENGINE=transformers, sglang or"
            " vllm-omni"
        )
    root = Path(settings.engine_path or f"/opt/engines/{spec.name}")
    folder = root / "bin" if (root / "bin").is_dir() else root
    words = {
        "bin": folder,
        "model": _model_file(spec, model, settings.variant),
        "name": settings.served_name,
        "socket": socket,
    }
    command = [part.format(**words, port=port) for part in template]
    if not Path(command[0]).exists():
        raise StartError(
            f"ENGINE={spec.name}, but there is no {command[0]}: install the engine into an"
            " environment of its own and set ENGINE_PATH to it"
        )
    extra = shlex.split(settings.engine_args)
    _refuse(spec, extra, settings.engine_force)
    return [
        *command,
        *_options(spec, settings),
        *_slots(spec, settings),
        *_threads(spec, settings, extra),
        *_guesses(spec, settings),
        *_parser(spec, settings, model, extra),
        *extra,
    ]


def _options(spec: EngineSpec, settings: Settings) -> list[str]:
    words: list[str] = []
    for name, option in spec.options.items():
        value = getattr(settings, name)
        unset = value is None or value is False or value in ("auto", "none")
        if unset or (
            (name in settings.model_fields_set) is False
            and value == type(settings).model_fields[name].default
        ):
            continue
        if name == "max_model_len" and spec.divides_context:
            value *= settings.max_num_seqs or spec.slots
        words += [option] if value is True else [option, str(value)]
        if name == "tool_call_parser":
            words += spec.tool_switch
    if spec.dtypes and settings.dtype not in ("auto", "native"):
        words += ["--dtype", settings.dtype]
    if spec.dtypes and settings.quantization in QUANTIZATIONS:
        words += ["--quantization", QUANTIZATIONS[settings.quantization]]
    if settings.lora_paths:
        if spec is not VLLM:
            raise StartError(
                f"LORA_PATHS is not passed on to ENGINE={spec.name}: use ENGINE=vllm, or name the"
                " adapters in ENGINE_ARGS"
            )
        words += [
            "--enable-lora",
            "--lora-modules",
            *(f"{one.name}={one.path}" for one in fetch_adapters(settings)),
        ]
    return words


def _slots(spec: EngineSpec, settings: Settings) -> list[str]:
    """What gives each slot of an engine that divides its context MAX_MODEL_LEN, or the model's
    own."""
    if settings.task == "image" or not spec.divides_context:
        return []
    if settings.max_model_len is None:
        return [spec.whole_context]
    return [] if settings.max_num_seqs else [spec.options["max_num_seqs"], str(spec.slots)]


def _threads(spec: EngineSpec, settings: Settings, extra: list[str]) -> list[str]:
    """As many as OMP_NUM_THREADS says, or as CPUs may be used; ENGINE_ARGS may say otherwise."""
    if not spec.threads or any(word.split("=")[0] in ("-t", spec.threads) for word in extra):
        return []
    return [spec.threads, str(settings.omp_num_threads or max(1, int(usable_cpus())))]


def _guesses(spec: EngineSpec, settings: Settings) -> list[str]:
    """The options of speculative decoding."""
    check_guesses(settings)
    template = spec.draft_model if settings.draft_model_id else spec.prompt_lookup
    wanted = settings.draft_model_id or settings.prompt_lookup
    if settings.task == "image" or not wanted or not template:
        return []
    tokens = settings.num_speculative_tokens
    draft = _model_file(spec, fetch_draft(settings)) if settings.draft_model_id else ""
    return [part.format(tokens=tokens, width=tokens + 1, draft=draft) for part in template]


def _parser(spec: EngineSpec, settings: Settings, model: Path, extra: list[str]) -> list[str]:
    """The tool parser that the chat template asks for, unless one is set or switched off."""
    option = spec.options.get("tool_call_parser", "")
    given = any(word.split("=")[0] == option for word in extra)
    if settings.task == "image" or settings.tool_call_parser != "auto" or not option or given:
        return []
    parser = parser_for(model, spec.parsers)
    if not parser:
        return []
    log.info("TOOL_CALL_PARSER=auto: %s, by the chat template", parser)
    return [option, parser, *spec.tool_switch]


def _refuse(spec: EngineSpec, words: list[str], force: bool) -> None:
    given = {word.split("=")[0] for word in words}
    for option, reason in spec.obsolete.items():
        if option in given:
            raise StartError(f"ENGINE_ARGS has {option}, which is obsolete: {reason}; leave it out")
    for option, reason in spec.harmful.items():
        if option in given and not force:
            raise StartError(
                f"ENGINE_ARGS has {option}: {reason}; leave it out, or set ENGINE_FORCE=true to"
                " keep it"
            )


def _model_file(spec: EngineSpec, model: Path, variant: str = "") -> Path:
    """llama.cpp wants a GGUF file, of several parts the first; the others want the folder."""
    if spec.name != "llamacpp" or model.is_file():
        return model
    try:
        files = chosen([one.name for one in model.iterdir() if one.is_file()], variant)
    except ValueError as error:
        raise StartError(f"{model}: {error}") from None
    if not files:
        raise StartError(f"ENGINE=llamacpp needs a .gguf file, but {model} has none")
    return model / files[0]
