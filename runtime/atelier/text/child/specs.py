"""What the server knows of each child engine: how to start it, which settings become which options,
what it answers.

One row of data an engine. Options that are known to hurt are refused with the reason and the
remedy.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from atelier.errors import StartError
from atelier.settings import Settings
from atelier.sources.adapters import fetch_adapters

TEXT_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
)
IMAGE_PATHS = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")
ANTHROPIC_PATHS = ("/v1/messages", "/v1/messages/count_tokens")


@dataclass(frozen=True)
class EngineSpec:
    """One engine. In `command`, {bin} is its environment's program folder, {model} the checkpoint,
    {name} the served name, {socket} and {port} where it listens. `options` maps settings to option
    names; `harmful` and `obsolete` map refused options to the reason. Prompts of `salted` paths are
    cached by the body's `cache_salt`."""

    name: str
    command: tuple[str, ...]
    options: Mapping[str, str]
    paths: tuple[str, ...]
    socket: bool = False
    image_command: tuple[str, ...] = ()
    health: str = "/health"
    metrics: str = "/metrics"
    metrics_prefix: str = ""
    tool_switch: tuple[str, ...] = ()
    dtypes: bool = True
    salted: tuple[str, ...] = ()
    harmful: Mapping[str, str] = field(default_factory=dict)
    obsolete: Mapping[str, str] = field(default_factory=dict)


VLLM = EngineSpec(
    name="vllm",
    command=(
        "{bin}/python",
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        "--model",
        "{model}",
        "--served-model-name",
        "{name}",
        "--uds",
        "{socket}",
        "--disable-uvicorn-access-log",
    ),
    socket=True,
    options={
        "tensor_parallel_size": "--tensor-parallel-size",
        "pipeline_parallel_size": "--pipeline-parallel-size",
        "enable_expert_parallel": "--enable-expert-parallel",
        "max_model_len": "--max-model-len",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "memory_fraction": "--gpu-memory-utilization",
        "kv_cache_dtype": "--kv-cache-dtype",
        "tool_call_parser": "--tool-call-parser",
        "reasoning_parser": "--reasoning-parser",
        "trust_remote_code": "--trust-remote-code",
    },
    paths=(*TEXT_PATHS, *ANTHROPIC_PATHS, "/v1/responses"),
    salted=("/v1/chat/completions", "/v1/completions", "/v1/responses"),
    metrics_prefix="vllm:",
    tool_switch=("--enable-auto-tool-choice",),
    harmful={
        "--enforce-eager": (
            "it turns off CUDA graphs and compilation, which makes decoding several times slower"
        )
    },
    obsolete={
        "--enable-chunked-prefill": "chunked prefill is always on in vLLM 1",
        "--num-scheduler-steps": (
            "multi-step scheduling is gone in vLLM 1; steps overlap by themselves"
        ),
    },
)

SGLANG = EngineSpec(
    name="sglang",
    command=(
        "{bin}/python",
        "-m",
        "sglang.launch_server",
        "--model-path",
        "{model}",
        "--served-model-name",
        "{name}",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--enable-metrics",
    ),
    image_command=(
        "{bin}/sglang",
        "serve",
        "--model-path",
        "{model}",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
    ),
    options={
        "tensor_parallel_size": "--tp-size",
        "pipeline_parallel_size": "--pp-size",
        "max_model_len": "--context-length",
        "max_num_seqs": "--max-running-requests",
        "max_num_batched_tokens": "--chunked-prefill-size",
        "memory_fraction": "--mem-fraction-static",
        "kv_cache_dtype": "--kv-cache-dtype",
        "tool_call_parser": "--tool-call-parser",
        "reasoning_parser": "--reasoning-parser",
        "trust_remote_code": "--trust-remote-code",
    },
    paths=(*TEXT_PATHS, *ANTHROPIC_PATHS, "/v1/responses"),
    salted=("/v1/chat/completions", "/v1/completions"),
    metrics_prefix="sglang:",
    harmful={"--disable-cuda-graph": "it makes decoding several times slower"},
)

LLAMACPP = EngineSpec(
    name="llamacpp",
    command=(
        "{bin}/llama-server",
        "--model",
        "{model}",
        "--alias",
        "{name}",
        "--host",
        "127.0.0.1",
        "--port",
        "{port}",
        "--jinja",
        "--metrics",
    ),
    options={
        "max_model_len": "--ctx-size",
        "max_num_seqs": "--parallel",
        "max_num_batched_tokens": "--batch-size",
    },
    paths=(*TEXT_PATHS, *ANTHROPIC_PATHS, "/v1/responses"),
    metrics_prefix="llamacpp:",
    dtypes=False,
)

SPECS = {spec.name: spec for spec in (VLLM, SGLANG, LLAMACPP)}

QUANTIZATIONS = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "fp8": "fp8"}


def spec_for(settings: Settings) -> EngineSpec:
    """The row of the engine that ENGINE names."""
    return SPECS[settings.engine]


def served_paths(settings: Settings) -> tuple[str, ...]:
    """What the child answers for the model it serves."""
    return IMAGE_PATHS if settings.task == "image" else spec_for(settings).paths


CHILDREN_ONLY = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "enable_expert_parallel",
    "kv_cache_dtype",
    "engine_args",
    "engine_path",
)
EMBEDDED_PARSERS = {
    "tool_call_parser": ("auto", "hermes", "llama3_json", "glm47", "qwen3_coder"),
    "reasoning_parser": ("auto", "none"),
}


def check_embedded(settings: Settings) -> None:
    """Refuse what only child engines know how to do.

    Raises:
        StartError: names the variable, its value and the remedy.
    """
    for name in CHILDREN_ONLY:
        if getattr(settings, name) != Settings.model_fields[name].default:
            value = getattr(settings, name)
            raise StartError(
                f"{name.upper()}={value} is for child engines: leave it out, or set ENGINE=vllm"
            )
    for name, allowed in EMBEDDED_PARSERS.items():
        if getattr(settings, name) not in allowed:
            value = getattr(settings, name)
            raise StartError(
                f"{name.upper()}={value} with the embedded engine: allowed: {', '.join(allowed)}"
            )
    if settings.lora_paths:
        raise StartError(
            "LORA_PATHS with a language model needs a child engine: merge the adapter, or set"
            " ENGINE=vllm"
        )


def command_line(settings: Settings, model: Path, socket: Path, port: int) -> list[str]:
    """The child's command; adapters are fetched for it.

    Raises:
        StartError: the engine is not installed where ENGINE_PATH says, or an option is refused.
    """
    spec = spec_for(settings)
    template = spec.image_command if settings.task == "image" else spec.command
    if not template:
        raise StartError(
            f"ENGINE={spec.name} serves no image models: use ENGINE=transformers or ENGINE=sglang"
        )
    root = Path(settings.engine_path or f"/opt/engines/{spec.name}")
    folder = root / "bin" if (root / "bin").is_dir() else root
    words = {
        "bin": folder,
        "model": _model_file(spec, model),
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
    return [*command, *_options(spec, settings), *extra]


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


def _model_file(spec: EngineSpec, model: Path) -> Path:
    """llama.cpp wants a GGUF file; the others want the folder."""
    if spec.name != "llamacpp" or model.is_file():
        return model
    files = sorted(model.glob("*.gguf"))
    if not files:
        raise StartError(f"ENGINE=llamacpp needs a .gguf file, but {model} has none")
    return files[0]
