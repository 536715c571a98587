"""All settings of a server in one class: one field an environment variable, with group, type,
default and one line of help.

`atelier settings` and docs/settings.md are printed from this class. Options of the command line
override variables, variables override the profile named by PROFILE, and the profile overrides the
defaults below.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic_settings import SettingsConfigDict

from atelier.settings.assistants import AssistantSettings
from atelier.settings.groups import (
    ACCESS,
    CHILDREN,
    LANGUAGE,
    LANGUAGE_CHILDREN,
    MEMORY,
    MODEL,
    OWN,
    PICTURES,
    PROCESSES,
    PYTHON_CHILDREN,
    REQUESTS,
    SPEED,
    TEXT,
)
from atelier.settings.guesses import SpeculationSettings
from atelier.settings.pictures import PictureSettings
from atelier.settings.sources import SourceSettings
from atelier.settings.tidying import TidySettings
from atelier.settings.values import (
    AttentionBackend,
    ByteCount,
    DeviceName,
    Hosts,
    Lengths,
    Names,
    Origins,
    PictureSizes,
    Secrets,
    StepCache,
    Switch,
    WeightedNames,
)


class Settings(
    AssistantSettings, SpeculationSettings, PictureSettings, SourceSettings, TidySettings
):
    """Everything that can be set. Field `model_id` is variable `MODEL_ID`, and so on."""

    # A variable that is there but empty, as manifests leave it, is unset.
    model_config = SettingsConfigDict(
        case_sensitive=False, extra="ignore", frozen=True, env_ignore_empty=True
    )

    model_id: str = MODEL(
        "builtin/shapes", "Folder, .safetensors file, s3://bucket/prefix or Hub id@revision."
    )
    model_name: str = MODEL("", "Name in URLs and answers; empty: the last part of MODEL_ID.")
    task: Literal["auto", "image", "text"] = MODEL(
        "auto", "What the checkpoint is; auto reads its config."
    )
    pipeline_class: str = MODEL(
        "", "diffusers pipeline class to use instead of the checkpoint's own.", PICTURES
    )
    single_file_config: str = MODEL(
        "", "Folder with a pipeline's configs, for a single .safetensors file.", PICTURES
    )
    variant: str = MODEL(
        "", "Weight variant, such as fp16 or GGUF's Q4_K_M; empty: plain files, else the only one."
    )
    scheduler: str = MODEL(
        "", "diffusers scheduler class that replaces the checkpoint's.", PICTURES
    )
    lora_paths: Names = MODEL(
        [], "LoRA adapters, or folders of them, from where MODEL_ID may come; comma-separated."
    )
    default_lora: WeightedNames = MODEL(
        [], "Adapters, name or name=weight, of requests that name none.", PICTURES
    )
    max_loras: int = MODEL(
        8, "Adapters kept in memory; the least recently used one goes first.", PICTURES, ge=1
    )
    allow_pickle: bool = MODEL(
        False, "Accept .bin, .ckpt and .pt weights, which can run code when opened."
    )
    trust_remote_code: bool = MODEL(
        False, "Run Python code that a checkpoint brings along.", OWN | PYTHON_CHILDREN
    )

    device: DeviceName = MEMORY("auto", "auto, cpu, cuda, cuda:N, mps or xpu.", OWN)
    dtype: Literal["auto", "bfloat16", "float16", "float32", "native"] = MEMORY(
        "auto",
        "Compute type; native is the one the checkpoint's headers state.",
        OWN | PYTHON_CHILDREN,
    )
    quantization: Literal["none", "auto", "int8", "nf4", "fp8"] = MEMORY(
        "none",
        "Weight quantization of the denoiser and large text encoders.",
        OWN | PYTHON_CHILDREN,
    )
    memory_fraction: float | None = MEMORY(
        None,
        (
            "Share of the device's memory to use. Pictures: of what is free, unset: 0.92. "
            "Language models: of all of it, unset: 0.9, or a child engine's own."
        ),
        OWN | PYTHON_CHILDREN,
        gt=0,
        le=1,
    )
    enable_low_cpu_mem: Switch = MEMORY(
        "auto", "Load weights shard by shard, without a second copy in RAM.", PICTURES
    )
    enable_attention_slicing: Switch = MEMORY(
        "auto", "Compute attention in slices: less memory, slower.", PICTURES
    )
    enable_vae_slicing: Switch = MEMORY("auto", "Decode a batch one picture at a time.", PICTURES)
    enable_vae_tiling: Switch = MEMORY("auto", "Decode large pictures in tiles.", PICTURES)
    enable_cpu_offload: Switch = MEMORY(
        "auto", "Keep components in RAM until they are needed.", PICTURES
    )
    shard_weights: Switch = MEMORY(
        "auto",
        (
            "In a group of devices (SEQUENCE_PARALLEL_SIZE), each keeps a share of the weights of"
            " denoiser and large text encoders; auto: where all of them do not fit one device."
        ),
        PICTURES,
    )
    omp_num_threads: int | None = MEMORY(
        None, "CPU threads of one operation; unset: from the cgroup quota, measured at start.", ge=1
    )

    compile: Literal["auto", "off", "regional", "full"] = SPEED(
        "auto",
        (
            "torch.compile of the denoiser: its repeated blocks, or all of it. On a GPU also fused"
            " residual blocks in U-Nets and VAEs."
        ),
        OWN,
    )
    enable_cuda_graphs: Switch = SPEED(
        "auto",
        "Record denoiser calls whose shape is seen again, where a GPU can.",
        PICTURES,
    )
    attention_backend: AttentionBackend = SPEED(
        "auto",
        "Attention kernel of the denoiser; auto lets torch choose one for every call.",
        PICTURES,
    )
    step_cache: StepCache = SPEED(
        "off",
        (
            "Answer denoiser steps from the last ones where little changes: faster, not exact; the"
            " default of a request's step_cache."
        ),
        PICTURES,
    )
    warmup: Literal["auto", "off"] = SPEED(
        "auto",
        (
            "auto runs the model before ready; off is ready at once, and the first requests pay "
            "for it."
        ),
    )
    warmup_sizes: PictureSizes = SPEED(
        [],
        (
            "Picture sizes, such as 1024x1024, drawn before ready; compiled models add their "
            "native size."
        ),
        PICTURES,
    )
    warmup_prompts: Lengths = SPEED(
        [128, 512, 2048],
        "Prompt lengths run before ready, in tokens, cut to the context; comma-separated.",
        {"text"},
    )

    max_pixels: int = REQUESTS(
        2048 * 2048, "Largest width x height of a picture, in or out.", PICTURES, ge=64
    )
    size_fallback: Literal["refuse", "nearest"] = REQUESTS(
        "refuse", "A size that the model does not draw: refuse it, or draw the nearest.", PICTURES
    )
    max_steps: int = REQUESTS(150, "Largest num_inference_steps.", PICTURES, ge=1)
    max_images_per_request: int = REQUESTS(
        8, "Largest number of pictures of one request, instances counted.", PICTURES, ge=1
    )
    max_body_bytes: ByteCount = REQUESTS(
        64 * 2**20, "Larger request bodies are refused with 413.", ge=1024
    )
    max_batch_size: int = REQUESTS(
        16, "Rows of one denoiser call; a guided picture is two. 1: no batching.", PICTURES, ge=1
    )
    max_queue_size: int = REQUESTS(
        64,
        (
            "Prompts waiting or running at once, all workers together; n pictures or answers of one"
            " prompt count once, with a child engine a request does. More are refused with 429."
        ),
        ge=1,
    )
    request_timeout: float = REQUESTS(
        600, "Seconds a request may take, queue included; then 504.", gt=0
    )

    data_parallel_size: int | None = PROCESSES(
        None, "Workers, one a device; unset: all visible GPUs, or one on a CPU.", PICTURES, ge=1
    )
    sequence_parallel_size: int = PROCESSES(
        1, "Devices that share each denoiser call: a worker has so many.", PICTURES, ge=1
    )
    hang_seconds: float = PROCESSES(
        120,
        "Seconds at one call after which a worker is replaced; longer calls raise it.",
        OWN,
        gt=0,
    )
    drain_seconds: float = PROCESSES(30, "Seconds that running work gets after SIGTERM.", ge=0)
    engine: Literal["transformers", "vllm", "sglang", "vllm-omni", "llamacpp"] = PROCESSES(
        "transformers", "What runs the model: the embedded engine, or a child process."
    )
    engine_path: str = PROCESSES(
        "", "Environment folder or program of the child engine; empty: /opt/engines.", CHILDREN
    )
    engine_args: str = PROCESSES(
        "", "More command-line options for the child engine, verbatim.", CHILDREN
    )
    engine_force: bool = PROCESSES(
        False, "Accept options in ENGINE_ARGS that are known to slow the engine.", CHILDREN
    )
    tensor_parallel_size: int = PROCESSES(
        1, "GPUs that share each layer (child engines).", PYTHON_CHILDREN, ge=1
    )
    pipeline_parallel_size: int = PROCESSES(
        1, "GPUs that share the stack of layers (child engines).", LANGUAGE_CHILDREN, ge=1
    )
    enable_expert_parallel: bool = PROCESSES(
        False, "Spread experts over GPUs instead of cutting each one.", {"vllm"}
    )

    profile: str = LANGUAGE("", "Name of a set of values (`atelier profiles`), or a .yaml file.")
    max_model_len: int | None = LANGUAGE(
        None, "Tokens of prompt and answer; unset: the model's own.", TEXT, ge=16
    )
    max_num_seqs: int | None = LANGUAGE(
        None, "Sequences that run at once; unset: the engine's choice.", TEXT, ge=1
    )
    max_num_batched_tokens: int | None = LANGUAGE(None, "Tokens of one prefill step.", TEXT, ge=16)
    kv_cache_dtype: str = LANGUAGE(
        "auto", "Type of the key-value cache of a child engine, such as fp8.", LANGUAGE_CHILDREN
    )
    tool_call_parser: str = LANGUAGE(
        "auto",
        "Form of tool calls; auto: by the chat template; embedded: hermes, llama3_json, glm47.",
        LANGUAGE_CHILDREN | {"text"},
    )
    reasoning_parser: str = LANGUAGE(
        "auto",
        "Form of reasoning; embedded: auto (think tags) or none.",
        LANGUAGE_CHILDREN | {"text"},
    )

    api_keys: Secrets = ACCESS([], "Accepted keys; empty: no check.")
    allowed_origins: Origins = ACCESS(
        [], "Origins of pages in browsers that may call, or *; empty: none. Comma-separated."
    )
    allowed_image_hosts: Hosts = ACCESS(
        [], "Hosts that input pictures may be fetched from; empty: none.", PICTURES
    )
    log_format: Literal["text", "json"] = ACCESS("text", "Form of the log lines.")
    log_level: Literal["debug", "info", "warning", "error"] = ACCESS(
        "info", "Least severe log lines kept."
    )
    metric_aliases: bool = ACCESS(
        True,
        (
            "Also name what waits and runs vllm:num_requests_waiting and"
            " vllm:num_requests_running, which autoscalers query."
        ),
        OWN,
    )
    log_prompts: bool = ACCESS(False, "Write prompts into the log.")
    studio: bool = ACCESS(False, "Serve a page to draw on at /studio; needs the extra studio.")

    @property
    def default_adapters(self) -> dict[str, float]:
        """DEFAULT_LORA as name to weight."""
        pairs = [entry.partition("=") for entry in self.default_lora]
        return {name: float(weight or 1) for name, _, weight in pairs}

    @property
    def served_name(self) -> str:
        """MODEL_NAME, or a name made of the last part of MODEL_ID that is safe in a URL."""
        last = (
            self.model_id.rstrip("/").rsplit("/", 1)[-1].split("@")[0].removesuffix(".safetensors")
        )
        return self.model_name or re.sub(r"[^A-Za-z0-9._-]+", "-", last) or "model"
