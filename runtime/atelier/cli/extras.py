"""Which extra of the package brings which module, so that a command that misses one can say what
to install. A test compares it with what every file imports and with pyproject.toml."""

from __future__ import annotations

MODULES: dict[str, tuple[str, ...]] = {
    "serve": (
        "PIL",
        "accelerate",
        "boto3",
        "botocore",
        "compel",
        "diffusers",
        "fastapi",
        "greenlet",
        "grpc",
        "grpc_interceptor",
        "httpcore",
        "httptools",
        "huggingface_hub",
        "kserve",
        "llguidance",
        "numpy",
        "peft",
        "prometheus_client",
        "s3transfer",
        "safetensors",
        "starlette",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
        "triton",
        "uvicorn",
        "uvloop",
    ),
    "train": ("prodigyopt",),
    "gpu": ("bitsandbytes",),
    "mcp": ("anyio", "fastmcp", "mcp"),
    "provenance": ("c2pa", "cryptography"),
    "crt": ("awscrt",),
    "tracing": ("opentelemetry",),
    "bench": ("aiohttp", "optuna"),
    "studio": ("gradio", "markdown_it"),
    "notebooks": ("matplotlib",),
}
"""Top-level names of modules by extra; `train` and the others bring those of `serve` too."""

MEASURING = ("bench", "tune")
MEASURING_TOO = ("PIL", "matplotlib", "numpy")
"""Modules of other extras that `bench`, which brings nothing of `serve`, brings too."""


def advice(error: ModuleNotFoundError, command: str) -> str | None:
    """One line that says what to install; None if no extra brings the module that is missing.

    Args:
        command: what was called, such as `train`: an extra of that name is what it needs.
    """
    missing = (error.name or "").partition(".")[0]
    if command in MEASURING and missing in MEASURING_TOO:
        return f"{missing} is not installed: pip install 'atelier[bench]'"
    for extra, modules in MODULES.items():
        if missing in modules:
            wanted = command if extra == "serve" and command in MODULES else extra
            return f"{missing} is not installed: pip install 'atelier[{wanted}]'"
    return None
