"""The pictures of a run and their captions, read and checked before anything else costs time.

Leaves shapes to `buckets` and tensors to `cache`.
"""

from __future__ import annotations

import codecs
import hashlib
import mimetypes
import shutil
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from atelier.errors import InvalidRequest
from atelier.images.codec import eight_bits, upright
from atelier.images.truncation import check_whole
from atelier.sources.checkpoint.listing import is_left_behind
from atelier_training.dreambooth.errors import DataError
from atelier_training.dreambooth.options import TrainOptions

SUFFIXES = frozenset(
    {
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff",
        ".avif",
    }
)  # fmt: skip
UNREAD = frozenset(
    {
        ".heic", ".heif", ".hif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".xcf", ".svg", ".ico",
        ".tga", ".exr", ".hdr", ".dds", ".ppm", ".pgm", ".pbm", ".pnm",
    }
)  # fmt: skip
"""Suffixes of other pictures, whatever the system's table of types knows."""

RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"})
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LARGEST_SIDE = 16384  # pixels; beyond it a file is a mistake or an attack


@dataclass(frozen=True)
class TrainingPicture:
    """A file that opens, its size in pixels as shown (EXIF turned), and its caption."""

    path: Path
    width: int
    height: int
    caption: str

    def open(self) -> Image.Image:
        """The pixels, as `open_picture` reads them."""
        return open_picture(self.path)


def open_picture(path: Path) -> Image.Image:
    """The pixels upright, RGB, 8 bits; transparency over white; the first picture of several."""
    with Image.open(path) as image:
        shown = eight_bits(upright(image))  # in this order: EXIF is lost with the bits
        if shown.has_transparency_data:
            rgba = shown.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        return shown.convert("RGB")


def read_subject(options: TrainOptions) -> list[TrainingPicture]:
    """The subject's pictures in order of their names.

    Raises:
        DataError: no folder, too few, unreadable or too small pictures, missing or empty captions;
            all faults at once.
    """
    paths = picture_files(options.data, "data")
    found = [_read(path, options) for path in paths]
    if faults := [fault for fault in found if isinstance(fault, DataError)]:
        raise DataError("\n".join(fault.message for fault in faults))
    pictures = [picture for picture in found if isinstance(picture, TrainingPicture)]
    if len(pictures) < options.minimum_pictures:
        raise DataError(
            f"data={options.data} has {len(pictures)} pictures; {options.minimum_pictures} are"
            " needed"
        )
    return pictures


def _read(path: Path, options: TrainOptions) -> TrainingPicture | DataError:
    """The picture, or what is wrong with it."""
    try:
        return TrainingPicture(path, *measure(path, options.resolution), _caption(path, options))
    except DataError as error:
        return error


def picture_files(folder: Path, option: str) -> list[Path]:
    """Files of `folder` that are pictures by their suffix, sorted; hidden ones are not there.

    Those that cannot be read are among them, so that `measure` names them with all other faults.
    """
    if not folder.is_dir():
        raise DataError(f"{option}={folder} is not a folder")
    paths = sorted(path for path in folder.iterdir() if is_picture(path.name) and path.is_file())
    if not paths and option == "data":
        raise DataError(
            f"{option}={folder} has no pictures; readable: {', '.join(sorted(SUFFIXES))}"
        )
    return paths


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture, of whatever kind, and it is not hidden."""
    suffix = Path(name).suffix.lower()
    kind = mimetypes.guess_type(f"a{suffix}")[0] or ""
    known = suffix in SUFFIXES | RAW | UNREAD or kind.startswith("image/")
    return known and not is_left_behind(name)


def measure(path: Path, resolution: int) -> tuple[int, int]:
    """Decode the picture once; width and height as shown.

    Raises:
        DataError: it does not decode, or its shorter side is below half the resolution: enlarging
            would train blur.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path.name}: {path.suffix} is not read here; convert it to PNG or JPEG")
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise DataError(
                    f"{path.name} holds floating-point numbers, whose white nobody knows; convert"
                    " it to 8 or 16 bits"
                )
            if max(image.size) > LARGEST_SIDE:
                raise DataError(
                    f"{path.name}: {image.width} x {image.height} pixels, at most {LARGEST_SIDE} a"
                    " side"
                )
            image.load()
            if image.mode == "I" and np.asarray(image).max() > 65535:
                raise DataError(
                    f"{path.name} holds numbers of 32 bits, whose white nobody knows; convert it to"
                    " 8 or 16 bits"
                )
            check_whole(path.read_bytes(), image, path.name)
            shown = upright(image)
            shown.convert("RGB")
    except InvalidRequest as error:
        raise DataError(error.message) from None
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{path.name} cannot be read as a picture: {error}") from None
    if 2 * min(shown.size) < resolution:
        raise DataError(
            f"{path.name}: {shown.width} x {shown.height} pixels is too small for"
            f" resolution={resolution}; lower the resolution or use a picture of at least"
            f" {resolution // 2} pixels a side"
        )
    if max(shown.size) > 4 * min(shown.size):
        raise DataError(
            f"{path.name}: {shown.width} x {shown.height} pixels is narrower than 1:4; crop it"
        )
    return shown.size


def _caption(path: Path, options: TrainOptions) -> str:
    if options.captions == "prompt":
        return options.instance_prompt
    if options.captions == "names":
        caption = path.stem.replace("_", " ").strip()
    else:
        beside = (path.with_suffix(suffix) for suffix in (".txt", ".TXT", ".Txt"))
        sidecar = next((one for one in beside if one.is_file()), path.with_suffix(".txt"))
        if not sidecar.is_file():
            raise DataError(
                f"{path.name} has no caption file {sidecar.name}; write it or use captions=prompt"
            )
        caption = _text_of(sidecar).strip()
    if not caption:
        raise DataError(f"{path.name} has an empty caption")
    return caption


def _text_of(file: Path) -> str:
    """What a text file says: UTF-8, or what its byte-order mark names."""
    content = file.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name} is not {encoding}: byte {error.start} is {content[error.start]:#04x};"
            " save it as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without a mark
        raise DataError(f"{file.name} holds null characters; save it as UTF-8")
    return text


def data_hash(pictures: Sequence[TrainingPicture]) -> str:
    """SHA-256 over names, captions and contents, in order."""
    digest = hashlib.sha256()
    for picture in pictures:
        content = hashlib.sha256(picture.path.read_bytes()).hexdigest()
        digest.update(f"{picture.path.name}\0{picture.caption}\0{content}\n".encode())
    return digest.hexdigest()


def require_space(folder: Path, needed: int) -> None:
    """Raises DataError if the volume of `folder` has less than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"output={folder}: {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} GiB needed"
        )
