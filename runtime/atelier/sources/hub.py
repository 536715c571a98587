"""Weights from the Hub: only the files that a load needs, of one revision.

A repository often holds the same weights three or four times (pickles, variants, original layout, ONNX). Its file list
is read first, and only what `from_pretrained` will open is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atelier.errors import SourceError
from atelier.settings import Settings
from atelier.sources.landing import land
from atelier.sources.progress import Progress
from atelier.sources.weights import WEIGHTS

SIDE_FILES = re.compile(r".*\.(json|txt|model|jinja|py|tiktoken|vocab|merges)")
"""Configuration, tokenizers, templates."""

UNUSED = re.compile(r"(.*/)?(onnx|openvino|flax|coreml)[^/]*/.*|.*\.(onnx|msgpack|h5|ot|gguf|tflite)")

ADAPTERS = re.compile(r"(.*/)?(pytorch_lora_weights|adapter_model)\.safetensors")

OFFLINE = "HF_HUB_OFFLINE=1 forbids asking the Hub"


def fetch(settings: Settings, *, into: Path | None = None, progress: Progress | None = None) -> Path:
    """Download what MODEL_ID (`owner/name[@revision]`) needs into `into`, or into the Hub's own cache (HF_HOME).

    Raises:
        SourceError: the Hub does not answer or refuses, or HF_HUB_OFFLINE is set and the cache lacks the model.
    """
    name, _, revision = settings.model_id.partition("@")
    commit, chosen = (revision or None, None)
    if not settings.hf_hub_offline:
        commit, chosen = _listing(settings, name, revision)
    if into is None:
        return Path(_snapshot(settings, name, commit, chosen, progress))
    if settings.hf_hub_offline:
        from atelier.sources import local

        return local.copy(Path(_snapshot(settings, name, commit, None, progress)), into)
    versions = dict.fromkeys(chosen or (), str(commit))

    def fill(staging: Path) -> None:
        _snapshot(settings, name, commit, chosen, progress, local_dir=staging)

    return land(into, settings.model_id, versions, fill)


def needed(files: Iterable[str], variant: str, allow_pickle: bool) -> list[str]:
    """Of a repository's files, those that a load reads.

    In each folder: the weights of `variant` if it has them, else the plain ones, else all variants; safetensors, and
    pickles only where there is nothing else and `allow_pickle`. A repository without folders of weights keeps its
    single .safetensors files.
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


def _set(sets: dict[tuple[bool, str], list[str]], variant: str, allow_pickle: bool) -> list[str]:
    for pickle in (False, True) if allow_pickle else (False,):
        for name in (variant, ""):
            if (pickle, name) in sets:
                return sets[pickle, name]
        rest = [file for (kind, _), files in sets.items() if kind == pickle for file in files]
        if rest:
            return rest
    return []


def _listing(settings: Settings, name: str, revision: str) -> tuple[str, list[str]]:
    """The commit that the revision is now, and the files to fetch from it."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        info = HfApi(token=_token(settings)).model_info(name, revision=revision or None)
    except OfflineModeIsEnabled:
        raise SourceError(f"MODEL_ID={settings.model_id}: {OFFLINE}") from None
    except RepositoryNotFoundError:
        text = "does not exist, or needs a token with access: look at MODEL_ID and HF_TOKEN"
        raise SourceError(f"MODEL_ID={settings.model_id}: the repository {text}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            text = "is gated or private: set HF_TOKEN to a token that was granted access"
            raise SourceError(f"MODEL_ID={settings.model_id} {text} (HTTP {status})") from None
        if status == 404:
            raise SourceError(f"MODEL_ID={settings.model_id}: there is no revision {revision!r}") from None
        raise SourceError(f"MODEL_ID={settings.model_id}: the Hub answered HTTP {status}") from None
    except (OSError, RuntimeError) as error:
        text = "the Hub does not answer; set HF_ENDPOINT to a mirror, or MODEL_ID to a folder"
        raise SourceError(f"MODEL_ID={settings.model_id} is no path here, and {text}: {error}") from None
    files = needed([one.rfilename for one in info.siblings or ()], settings.variant, settings.allow_pickle)
    if not any(file.endswith((".safetensors", ".bin")) for file in files):
        raise SourceError(f"MODEL_ID={settings.model_id}: the repository has no weights in safetensors")
    return str(info.sha), files


def _snapshot(
    settings: Settings,
    name: str,
    commit: str | None,
    files: list[str] | None,
    progress: Progress | None,
    local_dir: Path | None = None,
) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(
            name,
            revision=commit,
            token=_token(settings),
            allow_patterns=[_literal(file) for file in files] if files else None,
            local_files_only=settings.hf_hub_offline,
            local_dir=local_dir,
            tqdm_class=_bar(progress),
        )
    except LocalEntryNotFoundError:
        text = f"{OFFLINE}, and the cache does not hold it: fetch it first, or set MODEL_ID to a folder"
        raise SourceError(f"MODEL_ID={settings.model_id}: {text}") from None


def _literal(file: str) -> str:
    """A file name as a pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", file)


def _token(settings: Settings) -> str | None:
    return settings.hf_token.get_secret_value() if settings.hf_token else None


def _bar(progress: Progress | None) -> Any:
    """huggingface_hub reports through tqdm: a bar that tells `progress` instead of drawing, if there is one."""
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
