"""Marks in served pictures: what they say over every protocol, and that others can read and verify
them: C2PA's own reader in another process, and exiftool."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from atelier.errors import SettingsError
from atelier.images.encoder import PictureEncoder
from atelier.provenance.credentials import make_trial_credentials
from atelier.settings import Settings
from tests.certificates import make_ca_and_server
from tests.conftest import Server, StartServer
from tests.protocols.pictures import FAST, SIZE, encoded, striped
from tests.tiny_controls import controlled_settings
from tests.triton import grpc as triton_grpc

PROMPT = "a heron that nobody else may know of"
FORMATS = ("png", "jpeg", "webp")
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"

READER = """
import c2pa, json, sys

anchors = open(sys.argv[1]).read()
context = c2pa.Context.from_dict({"trust": {"trust_anchors": anchors}})
told = []
for path in sys.argv[2:]:
    try:
        with c2pa.Reader(path, context=context) as reader:
            told.append(json.loads(reader.json()))
    except c2pa.C2paError as error:
        told.append({"validation_state": f"unreadable: {error}"})
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signer's chain, its key, and the authority above it, as a company would have
    them."""
    folder = tmp_path_factory.mktemp("keys")
    made = make_trial_credentials()
    (folder / "chain.pem").write_bytes(made.chain)
    (folder / "key.pem").write_bytes(made.key)
    authority = made.chain.decode().rpartition("-----BEGIN CERTIFICATE-----")
    (folder / "authority.pem").write_text(authority[1] + authority[2])
    return folder


@pytest.fixture(scope="module")
def signing(start_server: StartServer, tiny_checkpoint: Path, keys: Path) -> Iterator[Server]:
    with start_server(
        model_id=str(tiny_checkpoint),
        provenance="c2pa",
        c2pa_certificate=str(keys / "chain.pem"),
        c2pa_key=str(keys / "key.pem"),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def controlled(
    start_server: StartServer, tmp_path_factory: pytest.TempPathFactory, keys: Path
) -> Iterator[Server]:
    """One that signs what it draws by other pictures."""
    with start_server(
        **controlled_settings(tmp_path_factory.mktemp("controlled")),
        provenance="c2pa",
        c2pa_certificate=str(keys / "chain.pem"),
        c2pa_key=str(keys / "key.pem"),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def marking(start_server: StartServer, tiny_checkpoint: Path) -> Iterator[Server]:
    with start_server(
        model_id=str(tiny_checkpoint), provenance="metadata", provenance_prompt="true"
    ) as running:
        yield running


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def draw(server: Server, output_format: str = "png", **fields: Any) -> bytes:
    """A picture by OpenAI's client."""
    given: dict[str, Any] = {"prompt": PROMPT, "size": SIZE, "extra_body": FAST} | fields
    answer = client_of(server).images.generate(output_format=output_format, **given)  # type: ignore[call-overload]
    return base64.b64decode(answer.data[0].b64_json)


def edit(server: Server, *pictures: bytes) -> bytes:
    answer = client_of(server).images.edit(
        image=[(f"{index}.png", data) for index, data in enumerate(pictures)],
        prompt=PROMPT,
        size=SIZE,
        extra_body=FAST,
    )
    return base64.b64decode(answer.data[0].b64_json or "")


def verified(keys: Path, folder: Path, *pictures: bytes) -> list[dict[str, Any]]:
    """What C2PA's reader says of each picture, in a process that trusts the authority."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff\xe0": "jpeg", b"RIFF": "webp"}
    paths = []
    for index, data in enumerate(pictures):
        paths.append(folder / f"{index}.{kinds.get(data[:4], 'jpeg')}")
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", READER, keys / "authority.pem", *paths],
        capture_output=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def states(told: list[dict[str, Any]]) -> list[str]:
    return [one["validation_state"] for one in told]


def active(told: dict[str, Any]) -> dict[str, Any]:
    return told["manifests"][told["active_manifest"]]


def actions(told: dict[str, Any]) -> list[dict[str, Any]]:
    [assertion] = active(told)["assertions"]
    return assertion["data"]["actions"]


def pixels(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_signed_pictures_are_accepted_elsewhere(
    signing: Server, keys: Path, tmp_path: Path
) -> None:
    told = verified(keys, tmp_path, *(draw(signing, kind) for kind in FORMATS))
    assert states(told) == ["Trusted"] * 3
    for one in told:
        [made] = actions(one)
        assert made["action"] == "c2pa.created"
        assert made["digitalSourceType"] == GENERATED
        assert made["softwareAgent"]["name"] == "Atelier"
        assert made["parameters"] == {"urn.atelier.model": signing.model, "urn.atelier.seed": "7"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_changed_picture_is_rejected(
    signing: Server, keys: Path, tmp_path: Path, kind: str
) -> None:
    whole = draw(signing, kind)
    places = [whole.index(b"<atelier:Seed>") + 14, len(whole) - 40, whole.index(b"trainedAlgo")]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    found = states(verified(keys, tmp_path, whole, *changed))
    assert found[0] == "Trusted"
    assert not {"Trusted", "Valid"} & set(found[1:])


def test_every_protocol_signs(signing: Server, keys: Path, tmp_path: Path) -> None:
    fields = {"num_inference_steps": 3, "width": 64, "height": 64, "seed": 7}
    instance = {"prompt": PROMPT} | fields
    path = f"{signing.url}/v1/models/{signing.model}:predict"
    v1 = httpx.post(path, json={"instances": [instance]}).json()["predictions"][0]["image"]["b64"]
    inputs = [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}]
    v2 = httpx.post(
        f"{signing.url}/v2/models/{signing.model}/infer",
        json={"inputs": inputs, "parameters": fields},
    ).json()["outputs"][0]["data"][0]
    tensor = triton_grpc.InferInput("prompt", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([PROMPT.encode()], dtype=object))
    with triton_grpc.InferenceServerClient(signing.grpc) as client:
        grpc = client.infer(signing.model, [tensor], parameters=fields).as_numpy("image")[0]
    pictures = [base64.b64decode(v1), base64.b64decode(v2), grpc, draw(signing)]
    assert states(verified(keys, tmp_path, *pictures)) == ["Trusted"] * 4
    for one in pictures[1:]:
        assert (pixels(one) == pixels(pictures[0])).all()


def test_a_job_and_a_url_sign_too(signing: Server, keys: Path, tmp_path: Path) -> None:
    body = {"prompt": PROMPT, "size": SIZE, "response_format": "url"} | FAST
    path = f"{signing.url}/v1/images/generations"
    [link] = httpx.post(path, json=body).json()["data"]
    job = httpx.post(path, json=body, headers={"Prefer": "respond-async"}).json()
    while (state := httpx.get(signing.url + job["url"]).json())["status"] in ("queued", "running"):
        time.sleep(0.02)
    urls = [link["url"], state["result"]["data"][0]["url"]]
    told = verified(keys, tmp_path, *(httpx.get(url).content for url in urls))
    assert states(told) == ["Trusted"] * 2


def test_a_streams_previews_are_not_marked(signing: Server, keys: Path, tmp_path: Path) -> None:
    *previews, last = client_of(signing).images.generate(
        prompt=PROMPT, size=SIZE, stream=True, partial_images=2, extra_body=FAST | {"steps": 8}
    )
    assert len(previews) == 2
    for one in previews:
        assert b"DigitalSourceType" not in base64.b64decode(one.b64_json)
    pictures = [base64.b64decode(one.b64_json) for one in (*previews, last)]
    found = states(verified(keys, tmp_path, *pictures))
    assert found[2] == "Trusted"
    assert all("ManifestNotFound" in one for one in found[:2])


def test_an_edit_keeps_what_it_was_made_from(signing: Server, keys: Path, tmp_path: Path) -> None:
    first = draw(signing)
    mine, theirs = edit(signing, first), edit(signing, striped())
    bitmap = edit(signing, encoded((200, 10, 10), format="BMP"))
    told = verified(keys, tmp_path, first, mine, theirs, bitmap)
    assert states(told) == ["Trusted"] * 4
    for one in told[1:]:
        opened, edited = actions(one)
        assert (opened["action"], edited["action"]) == ("c2pa.opened", "c2pa.edited")
        assert edited["digitalSourceType"] == EDITED
        [ingredient] = active(one)["ingredients"]
        assert ingredient["relationship"] == "parentOf"
    own, foreign, bare = (active(one)["ingredients"][0] for one in told[1:])
    assert own["active_manifest"] == told[0]["active_manifest"]
    assert "active_manifest" not in foreign
    assert bare["format"] == "image/bmp"


def test_pictures_that_one_was_drawn_by_are_ingredients(
    controlled: Server, keys: Path, tmp_path: Path
) -> None:
    """Controls and image prompts, beside what is edited; their own manifests are kept, and those of
    weight 0 are none."""
    mine = draw(controlled)

    def entry(name: str, data: bytes, weight: float = 1) -> dict[str, Any]:
        return {"name": name, "image": base64.b64encode(data).decode(), "weight": weight}

    beside = {
        "control": [entry("edges", striped()), entry("edges", mine, 0)],
        "image_prompt": [entry("look", mine)],
    }
    drawn = draw(controlled, extra_body=FAST | beside)
    body = {"prompt": PROMPT, "size": SIZE, "image": entry("", striped())["image"]}
    edited = httpx.post(
        f"{controlled.url}/v1/images/edits", json=body | FAST | beside, timeout=60
    ).json()["data"][0]["b64_json"]
    told = verified(keys, tmp_path, mine, drawn, base64.b64decode(edited))
    assert states(told) == ["Trusted"] * 3
    [made] = actions(told[1])
    assert made["action"] == "c2pa.created" and made["digitalSourceType"] == GENERATED
    assert len(made["parameters"]["ingredients"]) == 2
    guides = [("control edges", "inputTo"), ("image prompt look", "inputTo")]
    assert related(told[1]) == guides
    assert related(told[2]) == [("input 1", "parentOf"), *guides]
    opened, made = actions(told[2])
    assert (len(opened["parameters"]["ingredients"]), made["action"]) == (1, "c2pa.edited")
    assert len(made["parameters"]["ingredients"]) == 2
    for one in told[1:]:
        own = {each["title"]: each.get("active_manifest") for each in active(one)["ingredients"]}
        assert own["image prompt look"] == told[0]["active_manifest"]
        assert own["control edges"] is None


def related(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["title"], one["relationship"]) for one in active(told)["ingredients"]]


def test_the_prompt_is_in_no_picture_unless_asked_for(signing: Server, marking: Server) -> None:
    for kind in FORMATS:
        assert PROMPT.encode() not in draw(signing, kind)
        assert PROMPT.encode() in draw(marking, kind)


def test_without_the_setting_there_are_no_marks(server: Server) -> None:
    for kind in FORMATS:
        assert b"http://ns.adobe.com" not in draw(server, kind)


@pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool is not here: make tools installs Debian's"
)
def test_exiftool_reads_the_marks(marking: Server, signing: Server, tmp_path: Path) -> None:
    prompt = 'tom & jerry <b> "ö"'
    paths = []
    for kind in FORMATS:
        for server in (marking, signing):
            paths.append(tmp_path / f"{len(paths)}.{kind}")
            paths[-1].write_bytes(draw(server, kind, prompt=prompt))
    done = subprocess.run(
        ["exiftool", "-json", "-G1", *paths], capture_output=True, check=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert len(told) == 6
    for index, one in enumerate(told):
        assert one["XMP-iptcExt:DigitalSourceType"] == GENERATED
        assert one["XMP-xmp:CreatorTool"].startswith("Atelier ")
        assert one["XMP-iptcExt:AISystemUsed"] == marking.model
        assert one["XMP-atelier:Seed"] == 7
        shown = one.get("XMP-iptcExt:AIPromptInformation")
        assert shown == (None if index % 2 else prompt)


def test_marks_change_no_pixel_and_no_neighbour(signing: Server, server: Server) -> None:
    """Edits and pictures from prompts at once, on a server that signs and on one that does not."""
    wishes = [(seed, kind) for seed in (1, 2, 3) for kind in ("png", "edit")]

    def drawn(server: Server, seed: int, kind: str) -> np.ndarray[Any, Any]:
        extra = FAST | {"seed": seed}
        if kind == "png":
            return pixels(draw(server, extra_body=extra))
        answer = client_of(server).images.edit(
            image=("in.png", striped()), prompt=PROMPT, size=SIZE, extra_body=extra
        )
        return pixels(base64.b64decode(answer.data[0].b64_json or ""))

    with ThreadPoolExecutor(len(wishes)) as pool:
        together = list(pool.map(lambda wish: drawn(signing, *wish), wishes))
    for wish, picture in zip(wishes, together, strict=True):
        lone = drawn(server, *wish)
        assert np.abs(lone.astype(int) - picture.astype(int)).max() <= 1


def refused(**settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        PictureEncoder(Settings(provenance="c2pa", **settings))
    return caught.value.message


def test_a_certificate_that_cannot_serve_is_refused_at_start(keys: Path, tmp_path: Path) -> None:
    chain, key = str(keys / "chain.pem"), str(keys / "key.pem")
    (tmp_path / "other.pem").write_bytes(make_trial_credentials().key)
    authority, web, web_key = make_ca_and_server(tmp_path)
    assert "C2PA_KEY is not set" in refused(c2pa_certificate=chain)
    assert "C2PA_CERTIFICATE is not set" in refused(c2pa_key=key)
    assert "nowhere.pem cannot be read: No such file" in refused(
        c2pa_certificate="/nowhere.pem", c2pa_key=key
    )
    assert "not a PEM file of certificates" in refused(c2pa_certificate=key, c2pa_key=key)
    assert "not a PEM file of a private key" in refused(c2pa_certificate=chain, c2pa_key=chain)
    assert "is not the key of the first certificate" in refused(
        c2pa_certificate=chain, c2pa_key=str(tmp_path / "other.pem")
    )
    (tmp_path / "web.pem").write_bytes(web.read_bytes() + authority.read_bytes())
    told = refused(c2pa_certificate=str(tmp_path / "web.pem"), c2pa_key=str(web_key))
    assert "web.pem cannot be used" in told and "the certificate is invalid" in told


def test_a_certificate_made_for_trials_is_told_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    PictureEncoder(Settings(provenance="c2pa"))
    assert "self-made certificate, for trials: nobody trusts it" in caplog.text
