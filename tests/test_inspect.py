"""`atelier inspect`: what it says of a picture's marks, of its signature, and of what it could not
verify, and the exit code that each comes to."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from atelier.cli.main import app
from atelier.errors import InvalidRequest
from atelier.events import Image as Drawn
from atelier.images.encoder import PictureEncoder
from atelier.images.request import ImageRequest
from atelier.provenance.credentials import Credentials, make_trial_credentials
from atelier.provenance.inspection import inspect
from atelier.settings import Settings
from tests.photos import BROKEN_TAGS, photo
from tests.test_extras import light

FORMATS = ("PNG", "JPEG", "WEBP")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of each kind, as `metadata.png`, `c2pa.webp` and so on; edits of a signed one as
    `edit.png`; and the PEM file of the authority that signed."""
    made = tmp_path_factory.mktemp("inspected")
    keys = make_trial_credentials()
    _, begin, authority = keys.chain.decode().rpartition("-----BEGIN CERTIFICATE-----")
    (made / "authority.pem").write_text(begin + authority)
    for level in ("off", "metadata", "c2pa"):
        encoder = encoder_of(made, keys, level)
        for kind in FORMATS:
            (made / f"{level}.{kind.lower()}").write_bytes(picture(encoder, kind))
    signed = (made / "c2pa.jpeg").read_bytes()
    (made / "edit.png").write_bytes(picture(encoder, "PNG", image=[signed, signed]))
    return made


def encoder_of(folder: Path, keys: Credentials, level: str) -> PictureEncoder:
    if level != "c2pa":
        return PictureEncoder(Settings(provenance=level))
    (folder / "chain.pem").write_bytes(keys.chain)
    (folder / "key.pem").write_bytes(keys.key)
    paths = {"c2pa_certificate": f"{folder}/chain.pem", "c2pa_key": f"{folder}/key.pem"}
    return PictureEncoder(Settings(provenance="c2pa", **paths))


def picture(encoder: PictureEncoder, kind: str, **fields: object) -> bytes:
    pixels = Image.effect_noise((64, 64), 60).convert("RGB").tobytes()
    request = ImageRequest.model_validate({"prompt": "a", "format": kind} | fields)
    return encoder.encode(Drawn(0, 7, 64, 64, 3, pixels), request)


def look(path: Path, *options: str) -> tuple[int, str]:
    """The exit code and what was printed."""
    done = CliRunner().invoke(app, ["inspect", str(path), *options])
    assert not done.exception or isinstance(done.exception, SystemExit)
    return done.exit_code, done.stdout


@pytest.mark.parametrize("kind", FORMATS)
def test_metadata_is_told_and_that_nobody_signed_it(folder: Path, kind: str) -> None:
    code, said = look(folder / f"metadata.{kind.lower()}")
    assert code == 0
    assert "made by a trained model" in said and "model          shapes" in said
    assert "seed           7" in said and "software       Atelier " in said
    assert "not verified\n  the metadata: it is not signed" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_signature_holds_and_who_signed_is_left_open(folder: Path, kind: str) -> None:
    code, said = look(folder / f"c2pa.{kind.lower()}")
    assert code == 0
    assert "holds: the file is as Atelier trial signer (self-made, for trials) signed it" in said
    assert "not verified\n  who Atelier trial signer" in said
    assert "when it was signed: there is no trusted time stamp" in said


def test_a_signer_is_measured_by_the_given_anchors(folder: Path) -> None:
    code, said = look(folder / "c2pa.png", "--trust", str(folder / "authority.pem"))
    assert code == 0 and "comes from one of the given anchors" in said
    assert "who Atelier trial signer" not in said
    _, begin, stranger = (
        make_trial_credentials().chain.decode().rpartition("-----BEGIN CERTIFICATE-----")
    )
    other = folder / "stranger.pem"
    other.write_text(begin + stranger)
    code, said = look(folder / "c2pa.png", "--trust", str(other))
    assert code == 4 and "DOES NOT COME from any of the given anchors" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_changed_picture_is_told(folder: Path, kind: str) -> None:
    data = bytearray((folder / f"c2pa.{kind.lower()}").read_bytes())
    data[data.index(b"<atelier:Seed>7") + 14] = ord("8")
    changed = folder / f"changed.{kind.lower()}"
    changed.write_bytes(data)
    code, said = look(changed)
    assert code == 4
    assert "DOES NOT HOLD: assertion.dataHash.mismatch" in said
    assert "holds: the file" not in said


def test_a_manifest_that_is_damaged_is_told(folder: Path) -> None:
    data = (folder / "c2pa.png").read_bytes()
    at = data.index(b"c2pa.actions") - 30
    damaged = folder / "damaged.png"
    damaged.write_bytes(data[:at] + bytes(40) + data[at + 40 :])
    code, said = look(damaged)
    assert code == 4 and "cannot be read" in said


def test_an_edit_tells_what_it_was_made_from(folder: Path) -> None:
    code, said = look(folder / "edit.png")
    assert code == 0
    assert "c2pa.opened, c2pa.edited" in said and "edited with a trained model" in said
    credited = "(image/jpeg) with credentials of its own"
    assert f"input 1 {credited}, input 2 {credited}" in said


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_without_marks_has_a_code_of_its_own(folder: Path, kind: str) -> None:
    code, said = look(folder / f"off.{kind.lower()}")
    assert code == 3 and "none: this says nothing about where the picture comes from" in said


def test_strangers_files_are_read_too(tmp_path: Path) -> None:
    """A photograph with EXIF; a packet in attributes, compressed; credentials that lie elsewhere;
    and text that would steer the terminal."""
    (tmp_path / "photo.jpeg").write_bytes(photo(*BROKEN_TAGS[0]))
    assert look(tmp_path / "photo.jpeg")[0] == 3
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF'
        ' xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><r:Description'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:t="http://purl.org/dc/terms/"'
        ' xmp:CreatorTool="a&#10;signature      holds" t:provenance="https://example.org/m.c2pa"/>'
        "</r:RDF></x:xmpmeta>"
    )
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", packet, zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunks)
    code, said = look(tmp_path / "theirs.png")
    assert code == 0
    assert "credentials kept elsewhere: https://example.org/m.c2pa was not fetched" in said
    assert not [line for line in said.splitlines() if line.startswith("signature")]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_whole_picture_is_refused(folder: Path, tmp_path: Path, kind: str) -> None:
    data = (folder / f"c2pa.{kind.lower()}").read_bytes()
    cut = tmp_path / "cut"
    for length in (15, 600):
        cut.write_bytes(data[:length])
        with pytest.raises(InvalidRequest, match="damaged or cut off"):
            inspect(cut)
    cut.write_bytes(b"%PDF")
    with pytest.raises(InvalidRequest, match="not a PNG, JPEG or WebP picture"):
        inspect(cut)
    with pytest.raises(InvalidRequest, match="cannot be read: No such file"):
        inspect(tmp_path / "missing.png")


def test_the_light_core_reads_marks_and_says_what_verifying_needs(folder: Path) -> None:
    done = light("inspect", str(folder / "metadata.webp"), folder=folder)
    assert done.returncode == 0 and "made by a trained model" in done.stdout
    done = light("inspect", str(folder / "c2pa.jpeg"), folder=folder)
    assert done.returncode == 5, done.stderr
    assert "its signature: that needs the C2PA library: pip install 'atelier[provenance]'" in (
        done.stdout
    )


def test_a_packet_fits_a_jpeg_however_long_the_prompt(tmp_path: Path) -> None:
    encoder = PictureEncoder(Settings(provenance="c2pa", provenance_prompt=True))
    for kind in FORMATS:
        data = picture(encoder, kind, prompt="&\0" + "&\U0001f426" * 9999)
        Image.open(io.BytesIO(data)).load()
        (tmp_path / "long").write_bytes(data)
        assert inspect(tmp_path / "long").code == 0
