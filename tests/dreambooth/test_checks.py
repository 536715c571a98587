"""Bad input is named before any time is spent on it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atelier_training.dreambooth.activations import activation_bytes, empty_denoiser
from atelier_training.dreambooth.buckets import bucket_sizes, plan_views
from atelier_training.dreambooth.data import read_subject, require_space
from atelier_training.dreambooth.errors import DataError, OptionError
from atelier_training.dreambooth.families import Rows, family_of
from atelier_training.dreambooth.memory import estimate_memory, require_memory
from atelier_training.dreambooth.options import TrainOptions
from atelier_training.dreambooth.train import check, train
from tests.photos import BROKEN_TAGS, photo

Build = Callable[..., TrainOptions]


def test_too_few_pictures_are_counted(options: Build, pictures: Path) -> None:
    for _ in range(3):
        next(iter(sorted(pictures.iterdir()))).unlink()
    with pytest.raises(DataError, match="2 pictures; 3 are needed"):
        check(options())


def test_all_unreadable_pictures_are_named_at_once(options: Build, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"not a picture")
    whole = (pictures / "thing 0.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"(?s)broken\.png cannot be read.*cut\.png cannot be read"):
        check(options())


def test_pictures_too_small_for_the_resolution_are_refused(options: Build, pictures: Path) -> None:
    Image.new("RGB", (40, 300)).save(pictures / "narrow.png")
    with pytest.raises(DataError, match=r"narrow\.png: 40 x 300 pixels is narrower than 1:4"):
        check(options())
    with pytest.raises(DataError, match=r"too small for resolution=512"):
        check(options(resolution=512))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance_prompt": "  "}, "instance_prompt is empty"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"resolution": 100}, "resolution=100 is not a multiple of 16"),
        ({"steps": "many"}, "steps='many'"),
        ({"method": "lokr"}, "method='lokr'.*'lora', 'dora' or 'full'"),
        ({"quantize": "nf4", "method": "full"}, "quantize=nf4 freezes the denoiser"),
        ({"early_stop": 3}, "early_stop needs validate_every"),
        ({"colour": "red"}, "colour='red'"),
    ],
)
def test_bad_options_are_named_with_their_value(
    options: Build, changes: dict, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        options(**changes)


def test_min_snr_is_refused_where_there_are_no_discrete_timesteps(options: Build) -> None:
    check(options("sd15", min_snr_gamma=5.0))
    with pytest.raises(OptionError, match=r"min_snr_gamma=5\.0"):
        check(options("sd3", min_snr_gamma=5.0))


@pytest.mark.parametrize("changes", [{"quantize": "nf4"}, {"optimizer": "adamw8bit"}])
def test_what_this_machine_cannot_do_is_refused_before_anything_is_loaded(
    options: Build, changes: dict
) -> None:
    [(name, value)] = changes.items()
    if find_spec("bitsandbytes") is None:
        with pytest.raises(
            OptionError, match=f"{name}={value} needs bitsandbytes, .*: pip install bitsandbytes"
        ):
            check(options(**changes))
    elif name == "quantize":
        with pytest.raises(OptionError, match="quantize=nf4 needs a GPU"):
            check(options(**changes))


def test_a_folder_that_is_no_checkpoint_is_refused(options: Build, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"model_index\.json is missing"):
        check(options(model=tmp_path))


def test_captions_come_from_names_or_sidecar_files(options: Build, pictures: Path) -> None:
    assert read_subject(options(captions="names"))[1].caption == "thing 1"
    with pytest.raises(DataError, match=r"thing 0\.png has no caption file thing 0\.txt"):
        read_subject(options(captions="files"))
    for path in list(pictures.iterdir()):
        path.with_suffix(".txt").write_text(f"a caption of {path.stem}\n")
    assert read_subject(options(captions="files"))[2].caption == "a caption of thing 2"
    (pictures / "thing 3.txt").write_text("\n")
    with pytest.raises(DataError, match=r"thing 3\.png has an empty caption"):
        read_subject(options(captions="files"))


@pytest.mark.parametrize("suffix", ["jfif", "gif", "tif", "tiff", "avif", "WEBP", "bmp"])
def test_pictures_of_many_kinds_are_taken(options: Build, pictures: Path, suffix: str) -> None:
    file = pictures / f"a ring.{suffix}"
    Image.new("RGB", (64, 64), "red").save(file, {"jfif": "JPEG", "tif": "TIFF"}.get(suffix))
    picture = next(each for each in read_subject(options()) if each.path == file)
    red, green, blue = np.asarray(picture.open())[32, 32].astype(int)
    assert (red > 240, green < 15, blue < 15) == (True, True, True)


@pytest.mark.parametrize("name", ["ring.HEIC", "ring.dng", "ring.svg", "ring.jxl", "ring.psd"])
def test_pictures_that_are_not_read_are_named_with_all_other_faults(
    options: Build, pictures: Path, name: str
) -> None:
    (pictures / name).write_bytes(b"a picture of its kind")
    (pictures / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=f"(?s)broken.*{name}: .* is not read here; convert it to"):
        check(options())


def test_what_systems_leave_in_a_folder_is_not_there(options: Build, pictures: Path) -> None:
    for name in ("._thing 0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (pictures / name).write_bytes(b"\0\5\x16\7")
    (pictures / "lost+found").mkdir()
    assert len(read_subject(options())) == 5


def test_a_16_bit_grey_picture_is_scaled_and_floats_are_refused(
    options: Build, pictures: Path
) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(pictures / "a ramp.png")
    values = np.asarray(read_subject(options())[0].open())[0, :, 0]
    assert values.tolist() == [round(value / 257) for value in ramp[0].tolist()]
    Image.fromarray(ramp.astype(np.float32)).save(pictures / "floats.tif")
    with pytest.raises(DataError, match=r"floats\.tif holds floating-point numbers"):
        read_subject(options())


@pytest.mark.parametrize(("tag", "kind", "value"), BROKEN_TAGS)
def test_a_photo_with_an_odd_exif_tag_stands_upright(
    options: Build, pictures: Path, tag: int, kind: int, value: bytes
) -> None:
    (pictures / "a photo.jpg").write_bytes(photo(kind, tag, value))
    picture = read_subject(options())[0]
    assert (picture.width, picture.height) == picture.open().size == (64, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_16_bit_picture_stands_upright_too(
    options: Build, pictures: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = np.full((64, 128), 60_000, np.uint16)
    Image.fromarray(grey).save(pictures / "a grey.png", exif=exif)
    [shown, *_] = read_subject(options())
    assert shown.open().size == ((128, 64) if orientation < 5 else (64, 128))
    assert shown.open().getpixel((0, 0)) == (233, 233, 233)


def test_further_pictures_that_cannot_be_used_are_named_together(
    options: Build, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mimetypes.guess_type", lambda name: (None, None))  # as in a small image
    for suffix in (".jxl", ".psd", ".heic"):
        (pictures / f"other{suffix}").write_bytes(b"x")
    deep = np.arange(64 * 64, dtype=np.int32).reshape(64, 64) * 100_000
    Image.fromarray(deep).save(pictures / "deep.tiff")
    with pytest.raises(DataError) as refused:
        read_subject(options())
    for name in ("other.jxl", "other.psd", "other.heic", "deep.tiff holds numbers of 32 bits"):
        assert name in refused.value.message


def test_captions_are_read_in_the_encodings_people_save(options: Build, pictures: Path) -> None:
    encodings = ["utf-8", "utf-8-sig", "utf-16", "utf-16", "utf-8"]
    for path, encoding in zip(sorted(pictures.iterdir()), encodings, strict=True):
        path.with_suffix(".txt").write_text("ein schöner Ring", encoding=encoding)
    found = {picture.caption for picture in read_subject(options(captions="files"))}
    assert found == {"ein schöner Ring"}
    (pictures / "thing 1.txt").write_text("ein schöner Ring", encoding="cp1252")
    (pictures / "thing 2.txt").write_text("ein Ring", encoding="utf-16-le")  # without a mark
    (pictures / "thing 3.png").write_bytes(b"not a picture")
    faults = [r"thing 1\.txt is not utf-8: byte 7 is 0xf6", r"thing 2\.txt holds null", "thing 3"]
    with pytest.raises(DataError, match="(?s)" + ".*".join(faults)):
        read_subject(options(captions="files"))


def test_a_full_disk_is_noticed_before_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="GiB free"):
        require_space(tmp_path, 2**60)


def test_a_run_above_the_free_memory_is_refused_with_the_estimate(
    options: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atelier_training.dreambooth.memory.host_memory", lambda: (2**30, 2**20))
    run = options()
    with pytest.raises(
        OptionError, match=r"(?s)GiB are needed.*activations.*gradient_checkpointing=true"
    ):
        require_memory(family_of(run.model), run, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family_name", ["sd15", "sdxl", "sd3", "flux"])
def test_counted_activations_are_what_autograd_keeps(family_name: str, options: Build) -> None:
    """The count without storage, against the same count on real tensors with the same fused
    attention."""
    run = options(family_name, class_prompt="a ring")
    family = family_of(run.model)
    counted = activation_bytes(family, run, empty_denoiser(family, run), torch.float32)
    assert counted == real_activation_bytes(run)


def real_activation_bytes(run: TrainOptions) -> int:
    from atelier_training.dreambooth.activations import FusedAttention, rows_without_storage
    from atelier_training.dreambooth.adaptation import build_trainee

    family = family_of(run.model)
    trainee = build_trainee(family, run, torch.device("cpu"), torch.float32)
    empty = rows_without_storage(family, run, torch.float32)
    fill = lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype)  # noqa: E731
    text = {name: fill(value) for name, value in empty.text.items()}
    rows = Rows(
        fill(empty.latents), fill(empty.latents), fill(empty.levels), text, fill(empty.sizes)
    )
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*trainee.parameters(), *trainee.buffers())
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), FusedAttention():
        family.losses(trainee.denoiser, family.objective(None), rows)
    return sum(storage.nbytes() for storage in kept.values())


def test_gradient_checkpointing_quantization_and_full_training_change_the_estimate(
    options: Build,
) -> None:
    def peak(**changes: object) -> int:
        run = options(**changes)
        return estimate_memory(family_of(run.model), run, torch.bfloat16).training

    plain = peak()
    assert peak(gradient_checkpointing=True) < plain
    assert peak(quantize="nf4") < plain
    assert peak(method="full") > plain
    assert peak(batch_size=4) > 2 * plain


def test_sharding_splits_the_memory_over_the_processes_and_keeps_what_is_gathered_whole(
    options: Build,
) -> None:
    run = options(method="full", shard=True)
    one, four = (
        estimate_memory(family_of(run.model), run, torch.float32, processes) for processes in (1, 4)
    )
    assert four.masters == one.masters // 4 and four.optimizer == one.optimizer // 4
    assert one.weights // 4 < four.weights < one.weights
    assert four.activations == one.activations and four.disk == one.disk


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantize": "nf4"}, "cannot split the 4-bit weights"),
        ({"optimizer": "prodigy"}, "needs optimizer=adamw; prodigy reads whole weights"),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    options: Build, changes: dict[str, str], told: str
) -> None:
    with pytest.raises(OptionError, match=told):
        options(shard=True, **changes)


def test_one_process_has_nobody_to_share_with(options: Build) -> None:
    with pytest.raises(OptionError, match=r"start several with torchrun --nproc-per-node"):
        train(options(shard=True))


def test_buckets_keep_the_aspect_ratio_and_the_number_of_pixels() -> None:
    sizes = bucket_sizes(512)
    assert (512, 512) in sizes and (640, 384) in sizes
    assert all(0.8 * 512**2 <= width * height <= 512**2 for width, height in sizes)
    wide = plan_views([(1200, 700)], resolution=512, buckets=True, views=1, flip=False, seed=0)[0]
    assert (wide.width, wide.height) == (640, 384)
    square = plan_views([(1200, 700)], resolution=512, buckets=False, views=1, flip=False, seed=0)[
        0
    ]
    assert (square.width, square.height) == (512, 512)


def test_views_are_crops_and_mirror_images_of_the_picture() -> None:
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    )
    views = plan_views([picture.size], resolution=64, buckets=False, views=3, flip=True, seed=0)
    assert len(views) == 6
    plain, mirrored = (np.asarray(view.cut(picture)) for view in views[:2])
    assert plain.shape == (64, 64, 3)
    assert (plain == np.asarray(picture)[:, 16:80]).all()
    assert (mirrored == plain[:, ::-1]).all()
    assert len({view.left for view in views}) == 3
