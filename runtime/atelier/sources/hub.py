"""Weights from the Hub: only the files that a load needs, of one revision.

A repository often holds the same weights three or four times (pickles, variants, original layout,
ONNX). Its file list is read first, and only what `from_pretrained` will open is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources import local
from atelier.sources.checkpoint import gguf
from atelier.sources.checkpoint.weight_files import WEIGHTS
from atelier.sources.landing import FULL, land
from atelier.sources.progress import Progress
from atelier.units import gib

SIDE_FILES = re.compile(r".*\.(json|txt|model|jinja|py|tiktoken|vocab|merges)")
"""Configuration, tokenizers, templates."""

UNUSED = re.compile(
    r"(.*/)?(onnx|openvino|flax|coreml)[^/]*/.*|.*\.(onnx|msgpack|h5|ot|gguf|tflite)"
)

ADAPTERS = re.compile(r"(.*/)?(pytorch_lora_weights|adapter_model)\.safetensors")

OFFLINE = "HF_HUB_OFFLINE=1 forbids asking the Hub"


def fetch(
    settings: Settings, *, into: Path | None = None, progress: Progress | None = None
) -> Path:
    """Download what MODEL_ID (`owner/name[@revision]`) needs into `into`, or into the Hub's own
    cache (HF_HOME).

    Raises:
        SourceError: the Hub does not answer or refuses, or HF_HUB_OFFLINE is set and the cache
            lacks the model.
    """
    name, _, revision = settings.model_id.partition("@")
    if settings.hf_hub_offline:
        cached = _cached(name, revision)
        if cached is None:
            raise SourceError(_not_cached(settings))
        return local.copy(cached, into) if into else cached
    commit, files, _ = _listing(settings, name, revision)
    if into is None:
        return _download(
            settings, revision or None, files, progress
        )  # by name, so that the cache notes it for offline

    def fill(staging: Path) -> None:
        _download(settings, commit, files, progress, local_dir=staging)

    return land(into, settings.model_id, dict.fromkeys(files, commit), fill)


def outlook(settings: Settings) -> tuple[Path | None, str, int]:
    """For `doctor`: the cached snapshot if it is there; else what a fetch would bring, in words and
    bytes.

    Raises:
        SourceError: as `fetch`.
    """
    name, _, revision = settings.model_id.partition("@")
    cached = _cached(name, revision)
    if settings.hf_hub_offline:
        if cached is None:
            raise SourceError(_not_cached(settings))
        return cached, "", 0
    commit, files, sizes = _listing(settings, name, revision)
    if cached and cached.name == commit and all((cached / file).exists() for file in files):
        return cached, "", 0
    lacking = sum(sizes.values())
    return None, f"{len(sizes)} files, {gib(lacking)} to fetch", lacking


def file_names(settings: Settings) -> list[str]:
    """The files of the repository that a load needs; offline, those that are in the cache.

    Raises:
        SourceError: as `fetch`.
    """
    name, _, revision = settings.model_id.partition("@")
    if not settings.hf_hub_offline:
        return _listing(settings, name, revision)[1]
    cached = _cached(name, revision)
    if cached is None:
        raise SourceError(_not_cached(settings))
    return [str(one.relative_to(cached)) for one in cached.rglob("*") if one.is_file()]


def needed(files: Iterable[str], variant: str, allow_pickle: bool) -> list[str]:
    """Of a repository's files, those that a load reads.

    In each folder: the weights of `variant` if it has them, else the plain ones, else all variants;
    safetensors, and pickles only where there is nothing else and `allow_pickle`. A repository
    without folders of weights keeps its single .safetensors files.
    """
    kept, groups = [], {}  # type: ignore[var-annotated]
    for file in sorted(files):
        folder, _, leaf = file.rpartition("/")
        match = re.fullmatch(WEIGHTS, leaf)
        if UNUSED.fullmatch(file):
            continue
        if match:
            key = (match["kind"] == "bin", match["variant"] or match["old"] or "")
            groups.setdefault(folder, {}).setdefault(key, []).append(file)
        elif ADAPTERS.fullmatch(file) or SIDE_FILES.fullmatch(file):
            kept.append(file)
    for sets in groups.values():
        kept += _set(sets, variant, allow_pickle)
    if not groups and not any(ADAPTERS.fullmatch(file) for file in kept):
        kept += [file for file in files if file.endswith(".safetensors")]
    return sorted(kept)


def _gguf(settings: Settings, names: list[str]) -> list[str]:
    """The files of the one model in llama.cpp's form, and what lies beside it."""
    try:
        models = gguf.chosen(names, settings.variant)
    except ValueError as error:
        raise SourceError(f"MODEL_ID={settings.model_id}: {error}") from None
    if not models:
        raise SourceError(
            f"MODEL_ID={settings.model_id}: the repository has no .gguf files, which"
            " ENGINE=llamacpp needs"
        )
    return sorted([*models, *(name for name in names if SIDE_FILES.fullmatch(name))])


def _set(sets: dict[tuple[bool, str], list[str]], variant: str, allow_pickle: bool) -> list[str]:
    for pickle in (False, True) if allow_pickle else (False,):
        for name in (variant, ""):
            if (pickle, name) in sets:
                return sets[pickle, name]
        rest = [file for (kind, _), files in sets.items() if kind == pickle for file in files]
        if rest:
            return rest
    return []


def _listing(settings: Settings, name: str, revision: str) -> tuple[str, list[str], dict[str, int]]:
    """The commit that the revision is now, the files to fetch from it, and their bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi(token=_token(settings)).model_info(
            name, revision=revision or None, files_metadata=True
        )
    except OfflineModeIsEnabled:
        raise SourceError(f"MODEL_ID={settings.model_id}: {OFFLINE}") from None
    except GatedRepoError:
        text = "is gated: set HF_TOKEN to a token that was granted access"
        raise SourceError(f"MODEL_ID={settings.model_id} {text}") from None
    except RepositoryNotFoundError:
        text = "does not exist, or needs a token with access: look at MODEL_ID and HF_TOKEN"
        raise SourceError(f"MODEL_ID={settings.model_id}: the repository {text}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceError(
                f"MODEL_ID={settings.model_id}: the Hub refuses HF_TOKEN (HTTP {status})"
            ) from None
        if status == 404:
            raise SourceError(
                f"MODEL_ID={settings.model_id}: there is no revision {revision!r}"
            ) from None
        raise SourceError(f"MODEL_ID={settings.model_id}: the Hub answered HTTP {status}") from None
    except (
        Exception
    ) as error:  # the HTTP library beneath huggingface_hub, and so its errors, changed twice
        text = "the Hub does not answer; set HF_ENDPOINT to a mirror, or MODEL_ID to a folder"
        raise SourceError(
            f"MODEL_ID={settings.model_id} is no path here, and {text}: {error}"
        ) from None
    names = [one.rfilename for one in info.siblings or ()]
    if settings.engine == "llamacpp":
        files = _gguf(settings, names)
    else:
        files = needed(names, settings.variant, settings.allow_pickle)
    if not any(file.endswith((".safetensors", ".bin", ".gguf")) for file in files):
        hint = ", but in GGUF, which ENGINE=llamacpp serves" if gguf.models_of(names) else ""
        raise SourceError(
            f"MODEL_ID={settings.model_id}: the repository has no weights in safetensors{hint}"
        )
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    return str(info.sha), files, {file: sizes[file] for file in files}


def _cached(name: str, revision: str) -> Path | None:
    """The snapshot of a revision in the Hub's cache, if there is one; `inspect` tells whether it is
    complete."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _download(
    settings: Settings,
    revision: str | None,
    files: list[str],
    progress: Progress | None,
    local_dir: Path | None = None,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        path = snapshot_download(
            settings.model_id.partition("@")[0],
            revision=revision,
            token=_token(settings),
            allow_patterns=[_literal(file) for file in files],
            local_dir=local_dir,
            tqdm_class=_bar(progress),
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            where = (
                f"{local_dir.parent}"
                if local_dir
                else "the Hub's cache: set HF_HOME to a larger volume"
            )
            raise SourceError(
                f"the disk is full: {settings.model_id} does not fit under {where}"
            ) from error
        raise SourceError(
            f"MODEL_ID={settings.model_id}: the download from the Hub broke off: {error}"
        ) from error
    return Path(path)


def _not_cached(settings: Settings) -> str:
    text = f"{OFFLINE}, and the cache does not hold it: fetch it first, or set MODEL_ID to a folder"
    return f"MODEL_ID={settings.model_id}: {text}"


def _literal(file: str) -> str:
    """A file name as a pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", file)


def _token(settings: Settings) -> str | None:
    return settings.hf_token.get_secret_value() if settings.hf_token else None


def _bar(progress: Progress | None) -> Any:
    """huggingface_hub reports through tqdm: a bar that tells `progress` instead of drawing, if
    there is one."""
    if progress is None:
        return None
    from huggingface_hub.utils import tqdm

    tell = progress

    class Bar(tqdm):  # type: ignore[misc, type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._bytes:
                tell(int(self.n), int(self.total or self.n))
            return None

    return Bar
