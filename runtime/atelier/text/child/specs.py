"""What the server knows of each child engine, one row of data an engine: how to start it, which
settings become which options, what it answers. `command_line` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atelier.settings import Settings

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
    cached by the body's `cache_salt`. `parsers` are its tool parsers by the form of calls. With
    `tells_paths` its OpenAPI document says which paths it has; paths that it `needs` an option for
    are served with one of them. With `divides_context` its slots share the context that its option
    sets; with `own_tokens` it tokenizes in words of its own, which `tokens` translates.
    `prompt_lookup` and `draft_model` are its options for {tokens} guesses a step ({width}: with the
    token that they stand behind), of the smaller model {draft}.

    With `divides_context` it has `slots` of them if MAX_NUM_SEQS is unset, and `whole_context` lets
    each use all of the model's own. `threads` is its option for the CPUs that the container may
    use, where it would count those of the host. `fields` are its names of a request's fields, and
    of those that it `lacks` it would say nothing."""

    name: str
    command: tuple[str, ...]
    options: Mapping[str, str]
    paths: tuple[str, ...]
    socket: bool = False
    image_command: tuple[str, ...] = ()
    image_paths: tuple[str, ...] = IMAGE_PATHS
    health: str = "/health"
    metrics: str = "/metrics"
    metrics_prefix: str = ""
    tool_switch: tuple[str, ...] = ()
    dtypes: bool = True
    salted: tuple[str, ...] = ()
    parsers: Mapping[str, str] = field(default_factory=dict)
    tells_paths: bool = False
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    divides_context: bool = False
    slots: int = 1
    whole_context: str = ""
    threads: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    own_tokens: bool = False
    prompt_lookup: tuple[str, ...] = ()
    draft_model: tuple[str, ...] = ()
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
    parsers={
        "glm47": "glm47",
        "hermes": "hermes",
        "llama3_json": "llama3_json",
        "mistral": "mistral",
        "qwen3_coder": "qwen3_coder",
    },
    tells_paths=True,
    prompt_lookup=(
        "--speculative-config",
        '{{"method": "ngram", "num_speculative_tokens": {tokens}, "prompt_lookup_min": 2,'
        ' "prompt_lookup_max": 4}}',
    ),
    draft_model=(
        "--speculative-config",
        '{{"method": "draft_model", "model": "{draft}", "num_speculative_tokens": {tokens}}}',
    ),
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
    parsers={
        "glm47": "glm47",
        "hermes": "qwen25",
        "llama3_json": "llama3",
        "mistral": "mistral",
        "qwen3_coder": "qwen3_coder",
    },
    prompt_lookup=(
        *("--speculative-algorithm", "NGRAM"),
        *("--speculative-num-draft-tokens", "{width}"),
    ),
    draft_model=(
        *("--speculative-algorithm", "STANDALONE"),
        *("--speculative-draft-model-path", "{draft}"),
        *("--speculative-num-steps", "{tokens}"),
        *("--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", "{width}"),
    ),
    harmful={"--disable-cuda-graph": "it makes decoding several times slower"},
)

_OMNI_COMMAND = (
    "{bin}/vllm",
    "serve",
    "{model}",
    "--omni",
    "--served-model-name",
    "{name}",
    "--host",
    "127.0.0.1",
    "--port",
    "{port}",
)

VLLM_OMNI = EngineSpec(
    name="vllm-omni",
    command=_OMNI_COMMAND,
    image_command=_OMNI_COMMAND,
    options={
        "tensor_parallel_size": "--tensor-parallel-size",
        "max_model_len": "--max-model-len",
        "max_num_seqs": "--max-num-seqs",
        "max_num_batched_tokens": "--max-num-batched-tokens",
        "memory_fraction": "--gpu-memory-utilization",
        "trust_remote_code": "--trust-remote-code",
    },
    paths=("/v1/chat/completions", "/v1/completions"),
    image_paths=("/v1/images/generations", "/v1/images/edits", "/v1/chat/completions"),
    metrics_prefix="vllm:",
    harmful={
        "--enforce-eager": "it turns off compilation, which makes every step slower",
    },
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
    needs={"/v1/embeddings": ("--embedding", "--embeddings")},
    divides_context=True,
    slots=4,
    whole_context="--kv-unified",
    threads="--threads",
    fields={"repetition_penalty": "repeat_penalty"},
    lacks=("stop_token_ids",),
    own_tokens=True,
    prompt_lookup=(
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3"),
        *("--spec-ngram-simple-size-m", "{tokens}"),
    ),
    draft_model=(
        *("--spec-type", "draft-simple"),
        *("--spec-draft-model", "{draft}"),
        *("--spec-draft-n-max", "{tokens}"),
    ),
)

SPECS = {spec.name: spec for spec in (VLLM, SGLANG, VLLM_OMNI, LLAMACPP)}


def spec_for(settings: Settings) -> EngineSpec:
    """The row of the engine that ENGINE names."""
    return SPECS[settings.engine]


def served_paths(settings: Settings) -> tuple[str, ...]:
    """What the child answers for the model it serves, as far as that is known before it runs."""
    spec = spec_for(settings)
    if settings.task == "image":
        return spec.image_paths
    given = set(settings.engine_args.split())
    return tuple(
        path for path in spec.paths if path not in spec.needs or given & set(spec.needs[path])
    )
