"""What lies in a folder, without what systems and tools leave beside the files of a user."""

from __future__ import annotations

from pathlib import Path

LEFT_BEHIND = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information",
    "lost+found", "__macosx", "@eadir",
}  # fmt: skip
"""Names that Windows, ext4, archives of a Mac and network storage give, in small letters."""


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is nobody's: hidden (`._x.safetensors` of a Mac,
    `.ipynb_checkpoints`, `..data` of a mounted ConfigMap), or a system's own."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in LEFT_BEHIND


def entries(folder: Path) -> list[Path]:
    """The files and folders that were put there, sorted."""
    return sorted(one for one in folder.iterdir() if not is_left_behind(one.name))


def is_safetensors(path: Path) -> bool:
    """Whether a file's name ends so, in letters of any case."""
    return path.suffix.lower() == ".safetensors"


def safetensors_in(folder: Path) -> list[Path]:
    """Files in safetensors, sorted; not those of folders below."""
    return [one for one in entries(folder) if is_safetensors(one) and not one.is_dir()]
