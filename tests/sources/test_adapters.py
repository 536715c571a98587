"""Adapters come from where models come from: a folder, a store, a Hub; under names that their
addresses give them."""

import pytest

from atelier.cli.doctor import examine
from atelier.errors import CheckpointError, SourceError
from atelier.images.adapters import discover
from atelier.settings import load_settings
from atelier.sources.adapters import LORA_FILE, fetch_adapters
from atelier.sources.landing import MANIFEST
from tests.sources.checkpoints import pipeline, write_weights
from tests.sources.stores import Fault, client, proxy, s3_server

TENSORS = {"unet.lora_A.weight": (2, 4), "unet.lora_B.weight": (4, 2)}
VERSION = "models/ring/0123456789ab"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A bucket with a published version, a folder of adapters and pickles; the port of its
    server."""
    weights = write_weights(
        tmp_path_factory.mktemp("lora") / "lora.safetensors", TENSORS
    ).read_bytes()
    with s3_server() as port:
        s3 = client(port)
        s3.create_bucket(Bucket="atelier")
        for key in (
            f"{VERSION}/{LORA_FILE}",
            "many/ink.safetensors",
            f"many/oil/{LORA_FILE}",
            "one.safetensors",
        ):
            s3.put_object(Bucket="atelier", Key=key, Body=weights)
        for key in (
            f"{VERSION}/manifest.json",
            f"{VERSION}/README.md",
            "old/pytorch_lora_weights.bin",
        ):
            s3.put_object(Bucket="atelier", Key=key, Body=b"{}")
        yield port


def settings(port, tmp_path, *entries, **more):
    return load_settings(
        model_id=str(pipeline(tmp_path / "sd")),
        lora_paths=list(entries),
        cache_dir=tmp_path / "cache",
        aws_s3_endpoint=f"http://127.0.0.1:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key="secret",
        **more,
    )


def names(given):
    return set(discover(fetch_adapters(given)))


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (f"s3://atelier/{VERSION}", {"0123456789ab"}),
        (f"s3://atelier/{VERSION}/", {"0123456789ab"}),
        (f"s3://atelier/{VERSION}/{LORA_FILE}", {"0123456789ab"}),
        ("s3://atelier/one.safetensors", {"one"}),
        ("s3://atelier/many", {"ink", "oil"}),
    ],
)
def test_an_adapter_in_a_store_has_the_name_of_its_address(store, tmp_path, entry, found):
    assert names(settings(store, tmp_path, entry)) == found


def test_several_kinds_of_source_stand_in_one_list(store, tmp_path):
    write_weights(tmp_path / "style" / LORA_FILE, TENSORS)
    entries = f"s3:///{VERSION}", str(tmp_path / "style")
    assert names(settings(store, tmp_path, *entries, aws_s3_bucket="atelier")) == {
        "0123456789ab",
        "style",
    }


def test_a_download_that_breaks_off_leaves_nothing_under_its_name(store, tmp_path):
    with proxy(store) as link:
        given = settings(link.port, tmp_path, f"s3://atelier/{VERSION}")
        link.plan = lambda method, path, headers: None if "list-type" in path else Fault(status=403)
        with pytest.raises(
            SourceError, match=rf"^LORA_PATHS=s3://atelier/{VERSION}: .* refuses access"
        ):
            fetch_adapters(given)
        assert not list((tmp_path / "cache").rglob(MANIFEST))
        link.plan = None
        assert names(given) == {"0123456789ab"}
    assert len(list((tmp_path / "cache").rglob(MANIFEST))) == 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "s3://atelier/gone",
            "LORA_PATHS=s3://atelier/gone: .* is empty: .* beside it are: many/, models/",
        ),
        ("s3:///ring", "LORA_PATHS=s3:///ring names no bucket: set AWS_S3_BUCKET"),
        ("s3://nowhere/ring", "there is no bucket 'nowhere' .* look at LORA_PATHS"),
        (
            "/mnt/gone",
            "LORA_PATHS=/mnt/gone is not a path on this machine, an s3:// address or a Hub id",
        ),
    ],
)
def test_what_is_nowhere_is_refused_by_name_and_the_doctor_says_so_too(
    store, tmp_path, entry, message
):
    given = settings(store, tmp_path, entry)
    with pytest.raises(SourceError, match=message):
        fetch_adapters(given)
    assert any(message.split(" ")[0] in problem for problem in examine(given).problems)


def test_pickles_in_a_store_are_refused(store, tmp_path):
    given = settings(store, tmp_path, "s3://atelier/old", allow_pickle=True)
    with pytest.raises(
        CheckpointError, match=r"^LORA_PATHS=s3://atelier/old has only pickled weights .*\.bin"
    ):
        names(given)
    [problem] = examine(given).problems
    assert "neither s3://atelier/old nor what lies in it is a LoRA adapter" in problem


def test_the_doctor_fetches_nothing(store, tmp_path):
    assert examine(settings(store, tmp_path, f"s3://atelier/{VERSION}")).problems == []
    assert not (tmp_path / "cache").exists()
