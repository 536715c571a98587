"""Weights from a real S3 server on loopback, through a proxy that breaks connections, answers 503
and spoils bytes."""

import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from boto3.s3.transfer import TransferConfig

from atelier.errors import SourceError
from atelier.settings import load_settings
from atelier.sources import crt, fetch, file_names, s3, transfer
from atelier.sources.kind import kind_of
from atelier.sources.landing import MANIFEST
from tests.certificates import make_ca_and_server
from tests.sources.stores import Fault, client, environment, proxy, s3_server

MIB = 2**20
BIG = bytes(hashlib.sha256(b"weights").digest()) * (3 * MIB // 32)
FILES = {
    "model_index.json": b"{}",
    "unet/model.safetensors": BIG,
    "unet/config.json": b"{}",
    "tokenizer/empty.txt": b"",
}


@pytest.fixture(scope="module")
def server():
    with s3_server() as port:
        yield port


@pytest.fixture
def bucket(server):
    """A bucket with a model under `sd/`, and neighbours that must not be taken."""
    s3 = client(server)
    s3.create_bucket(Bucket="models")
    for name, content in FILES.items():
        s3.put_object(Bucket="models", Key=f"sd/{name}", Body=content)
    s3.put_object(Bucket="models", Key="sd-refiner/model_index.json", Body=b"another")
    s3.put_object(Bucket="models", Key="sd/", Body=b"")
    yield s3
    for entry in s3.list_objects_v2(Bucket="models").get("Contents", ()):
        s3.delete_object(Bucket="models", Key=entry["Key"])
    s3.delete_bucket(Bucket="models")


@pytest.fixture
def link(server):
    with proxy(server) as running:
        yield running


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    """Ranges of 256 KiB make twelve of the large file; delays are a fiftieth."""
    monkeypatch.setattr(transfer, "RANGE_BYTES", 256 * 1024)
    monkeypatch.setattr(transfer, "FIRST_DELAY_SECONDS", 0.01)


def settings(port, tmp_path, model_id="s3://models/sd", **more):
    return load_settings(
        model_id=model_id,
        cache_dir=tmp_path / "cache",
        aws_s3_endpoint=f"http://127.0.0.1:{port}",
        aws_access_key_id="tester",
        aws_secret_access_key="secret",
        **more,
    )


def content(folder):
    files = {
        str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }
    files.pop(MANIFEST)
    return files


def test_a_prefix_is_a_folder_with_all_its_files_the_empty_one_too(bucket, link, tmp_path):
    for model_id in ("s3://models/sd", "s3://models/sd/"):
        folder = fetch(settings(link.port, tmp_path, model_id))
        assert content(folder) == FILES
    assert len(link.gets("model.safetensors")) == 12, (
        "fetched once, in ranges; the second call found it complete"
    )


def test_a_range_that_is_there_at_once_finishes_its_file_once(
    bucket, server, tmp_path, monkeypatch
):
    class AtOnce(ThreadPoolExecutor):
        """Every range is there before the next job is thought of, as in a close store."""

        def submit(self, work, *arguments):
            job = super().submit(work, *arguments)
            job.exception()
            return job

    monkeypatch.setattr(transfer, "ThreadPoolExecutor", AtOnce)
    assert content(fetch(settings(server, tmp_path))) == FILES


def test_what_a_model_is_shows_before_anything_is_downloaded(bucket, link, tmp_path):
    names = file_names(settings(link.port, tmp_path))
    assert sorted(names) == sorted(FILES)
    assert kind_of(settings(link.port, tmp_path)) == "image"
    bucket.put_object(Bucket="models", Key="llm/config.json", Body=b"{}")
    assert kind_of(settings(link.port, tmp_path, "s3://models/llm")) == "text"
    assert not link.gets("model.safetensors") and not (tmp_path / "cache").exists()


def test_the_bucket_of_the_data_connection_and_a_single_object(bucket, server, tmp_path):
    folder = fetch(settings(server, tmp_path, "s3:///sd", aws_s3_bucket="models"))
    assert content(folder) == FILES
    file = fetch(settings(server, tmp_path, "s3://models/sd/unet/model.safetensors"))
    assert file.name == "model.safetensors" and file.read_bytes() == BIG
    with pytest.raises(SourceError, match="names no bucket: set AWS_S3_BUCKET"):
        fetch(settings(server, tmp_path, "s3:///sd"))


def test_a_named_folder_is_filled_and_progress_ends_at_the_whole(bucket, server, tmp_path):
    told = []
    folder = fetch(
        settings(server, tmp_path), into=tmp_path / "here", progress=lambda *step: told.append(step)
    )
    assert folder == tmp_path / "here" and content(folder) == FILES
    assert told[-1] == (sum(map(len, FILES.values())),) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_folder_with_files_of_another_origin_is_left_alone(bucket, server, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(SourceError, match="holds files that did not come from s3://models/sd"):
        fetch(settings(server, tmp_path), into=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_changed_model_replaces_the_old_one_whole(bucket, server, tmp_path):
    fetch(settings(server, tmp_path))
    bucket.put_object(Bucket="models", Key="sd/model_index.json", Body=b'{"new": 1}')
    bucket.delete_object(Bucket="models", Key="sd/unet/config.json")
    found = content(fetch(settings(server, tmp_path)))
    assert found["model_index.json"] == b'{"new": 1}' and "unet/config.json" not in found


def test_a_connection_cut_mid_object_is_taken_up_again(bucket, link, tmp_path):
    seen = set()

    def cut_each_range_once(method, path, headers):
        name = headers.get("Range")
        if method == "GET" and name and name not in seen and path.endswith("model.safetensors"):
            seen.add(name)
            return Fault(cut=1000)

    link.plan = cut_each_range_once
    assert content(fetch(settings(link.port, tmp_path))) == FILES
    assert len(link.gets("model.safetensors")) == 24


def test_a_burst_of_503_is_outlasted(bucket, link, tmp_path):
    """Every request, the listing included, is answered 503 three times before it is served."""

    def three_times_503(method, path, headers):
        times = link.requests.count((method, path, headers.get("Range", "")))
        return Fault(status=503) if times <= 3 else None

    link.plan = three_times_503
    assert content(fetch(settings(link.port, tmp_path))) == FILES
    assert len(link.gets("model.safetensors")) == 4 * 12


def test_a_store_that_stays_down_ends_in_an_error_after_bounded_attempts(bucket, link, tmp_path):
    link.plan = lambda *request: Fault(status=503)
    with pytest.raises(SourceError, match=r"answered SlowDown \(HTTP 503\)"):
        fetch(settings(link.port, tmp_path))
    assert len(link.requests) == transfer.ATTEMPTS


def test_spoiled_bytes_are_detected_and_nothing_that_looks_whole_is_left(bucket, link, tmp_path):
    link.plan = lambda method, path, headers: (
        Fault(flip=True) if path.endswith("model.safetensors") else None
    )
    with pytest.raises(SourceError, match=r"unet/model.safetensors is damaged: \w+ .* instead of"):
        fetch(settings(link.port, tmp_path))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))
    link.plan = None
    assert content(fetch(settings(link.port, tmp_path))) == FILES, "the next try fetches it afresh"


def test_a_multipart_upload_is_verified_by_its_parts(bucket, link, tmp_path):
    part = BIG + BIG
    upload = bucket.create_multipart_upload(Bucket="models", Key="multi/w.bin")["UploadId"]
    where = {"Bucket": "models", "Key": "multi/w.bin", "UploadId": upload}
    etags = [
        bucket.upload_part(**where, PartNumber=n, Body=body)["ETag"]
        for n, body in ((1, part), (2, b"rest"))
    ]
    parts = [{"ETag": etag, "PartNumber": n} for n, etag in enumerate(etags, 1)]
    etag = bucket.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})["ETag"]
    assert etag.endswith('-2"')
    assert (
        content(fetch(settings(link.port, tmp_path, "s3://models/multi")))["w.bin"]
        == part + b"rest"
    )
    link.plan = lambda method, path, headers: (
        Fault(flip=True) if method == "GET" and "w.bin" in path else None
    )
    with pytest.raises(SourceError, match="is damaged: "):
        fetch(settings(link.port, tmp_path, "s3://models/multi"), into=tmp_path / "again")


def test_what_boto3_uploads_in_parts_is_right(bucket, link, tmp_path):
    """It sends a checksum with each part; what a store makes of these is no sum of the object."""
    file = tmp_path / "w.bin"
    file.write_bytes(BIG * 6)
    parts = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    bucket.upload_file(str(file), "models", "parts/w.bin", Config=parts)
    head = bucket.head_object(Bucket="models", Key="parts/w.bin", ChecksumMode="ENABLED")
    assert "-" in head["ETag"]
    assert any(name.startswith("ChecksumCRC") for name in head)
    fetched = content(fetch(settings(link.port, tmp_path, "s3://models/parts")))
    assert fetched["w.bin"] == file.read_bytes()


def test_a_killed_download_is_resumed_where_it_was(bucket, link, tmp_path):
    """The process is killed when four ranges are noted; the next one asks for the others alone."""
    numbers = itertools.count(1)  # requests come side by side: each needs a number of its own

    def plan(method, path, headers):
        ranged = path.partition("?")[0].endswith("model.safetensors") and headers.get("Range")
        return Fault(delay=30) if ranged and next(numbers) > 4 else None

    link.plan = plan
    process = _fetching(link.port, tmp_path)
    journal = tmp_path / "here.partial" / "unet" / ("model.safetensors" + transfer.JOURNAL)
    deadline = time.monotonic() + 30
    while (
        not (journal.exists() and len(journal.read_text().splitlines()) == 5)
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "here").exists()
    link.plan, link.requests[:] = None, []
    assert content(fetch(settings(link.port, tmp_path), into=tmp_path / "here")) == FILES
    assert len(link.gets("model.safetensors")) == 12 - 4


def _fetching(port, tmp_path, before=""):
    code = (
        "from pathlib import Path\nfrom atelier.settings import load_settings\nfrom"
        " atelier.sources import fetch, transfer\ntransfer.RANGE_BYTES = 256 *"
        f" 1024\n{before}\nfetch(load_settings(model_id='s3://models/sd'),"
        f" into=Path({str(tmp_path / 'here')!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment(port), stderr=subprocess.PIPE, text=True
    )


def test_two_processes_that_fill_one_folder_download_it_once(bucket, link, tmp_path):
    link.plan = lambda method, path, headers: Fault(delay=0.3) if headers.get("Range") else None
    both = [_fetching(link.port, tmp_path) for _ in range(2)]
    for process in both:
        assert process.wait(60) == 0, process.stderr.read()
    assert content(tmp_path / "here") == FILES
    assert len(link.gets("model.safetensors")) == 12
    assert sorted(one.name for one in tmp_path.iterdir()) == ["here", "here.lock"]


def test_a_file_size_limit_is_told_as_a_full_disk(bucket, server, tmp_path):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}))"
    process = _fetching(server, tmp_path, limit)
    assert process.wait(60) != 0
    assert "the disk is full: s3://models/sd does not fit" in process.stderr.read()
    assert not (tmp_path / "here").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True,
        check=False
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("a small disk needs root and mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_is_told_before_anything_is_fetched(bucket, link, small_disk, tmp_path):
    (small_disk / "filler").write_bytes(bytes(2 * MIB))
    with pytest.raises(
        SourceError, match=r"needs 3 MiB more, but only 2 MiB are free under .*CACHE_DIR"
    ):
        fetch(settings(link.port, tmp_path), into=small_disk / "sd")
    assert not link.gets()
    assert not (small_disk / "sd").exists()


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_model(bucket, server, small_disk, tmp_path):
    def another_writer(done, total):
        filler = small_disk / "filler"
        if not filler.exists():
            filler.write_bytes(bytes(small_disk_free(small_disk)))

    with pytest.raises(
        SourceError, match=r"the disk is full: s3://models/sd does not fit .* Make room"
    ):
        fetch(settings(server, tmp_path), into=small_disk / "sd", progress=another_writer)
    assert not (small_disk / "sd").exists()
    (small_disk / "filler").unlink()
    assert content(fetch(settings(server, tmp_path), into=small_disk / "sd")) == FILES


def small_disk_free(folder):
    return shutil.disk_usage(folder).free


def test_wrong_credentials_name_the_variables_and_never_the_secret(server, bucket, tmp_path):
    url, plain = f"http://127.0.0.1:{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    call = urllib.request.Request(url, data=b"0", headers=plain)
    urllib.request.urlopen(call).close()
    try:
        with pytest.raises(SourceError) as caught:
            fetch(settings(server, tmp_path))
    finally:
        call.data = b"inf"
        urllib.request.urlopen(call).close()
    assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in str(caught.value)
    assert "InvalidAccessKeyId" in str(caught.value)
    assert "secret" not in str(caught.value) and "tester" not in str(caught.value)


def test_an_empty_prefix_says_what_is_beside_it(bucket, server, tmp_path):
    with pytest.raises(
        SourceError, match=r"s3://models/flux is empty: .*beside it are: sd-refiner/, sd/"
    ):
        fetch(settings(server, tmp_path, "s3://models/flux"))


def test_a_missing_bucket_and_a_dead_endpoint_name_their_settings(server, tmp_path):
    with pytest.raises(
        SourceError, match=r"there is no bucket 'nowhere' .* look at MODEL_ID and AWS_S3_BUCKET"
    ):
        fetch(settings(server, tmp_path, "s3://nowhere/sd"))
    with pytest.raises(SourceError, match=r"AWS_S3_ENDPOINT=http://127.0.0.1:1 does not answer"):
        fetch(settings(1, tmp_path))


@pytest.mark.parametrize("key", ["evil/../../outside.json", "evil/a\\b"])
def test_a_key_that_would_leave_its_folder_is_refused(bucket, server, tmp_path, key):
    bucket.put_object(Bucket="models", Key=key, Body=b"x")
    with pytest.raises(SourceError, match="would leave its folder: it is refused"):
        fetch(settings(server, tmp_path, "s3://models/evil"))


def test_a_slash_too_many_in_a_key_is_passed_over(bucket, server, tmp_path):
    bucket.put_object(Bucket="models", Key="upload//unet//config.json", Body=b"{}")
    folder = fetch(settings(server, tmp_path, "s3://models/upload"))
    assert (folder / "unet" / "config.json").read_bytes() == b"{}"
    bucket.put_object(Bucket="models", Key="upload/unet/config.json", Body=b"[]")
    with pytest.raises(SourceError, match=r"both would be the file 'unet/config\.json'"):
        fetch(settings(server, tmp_path, "s3://models/upload"))


@pytest.mark.parametrize("one, other", [("p/q", "p--q"), ("p-/q", "p/-q"), ("a/b/c", "a/b--c")])
def test_no_two_prefixes_share_a_cache_folder(tmp_path, one, other):
    folders = {
        s3.cache_folder(settings(1, tmp_path), s3.Address("models", prefix))
        for prefix in (one, other)
    }
    assert len(folders) == 2


def test_a_key_that_is_a_file_and_a_folder_is_refused(bucket, server, tmp_path):
    bucket.put_object(Bucket="models", Key="odd/a", Body=b"x")
    bucket.put_object(Bucket="models", Key="odd/a/b", Body=b"x")
    with pytest.raises(SourceError, match="holds both 'a' and 'a/b'"):
        fetch(settings(server, tmp_path, "s3://models/odd"))


def test_an_object_replaced_during_the_download_is_not_mixed(bucket, link, tmp_path):
    replaced = threading.Event()

    def replace_it(method, path, headers):
        if len(link.gets("model.safetensors")) == 6 and not replaced.is_set():
            replaced.set()
            bucket.put_object(Bucket="models", Key="sd/unet/model.safetensors", Body=BIG[::-1])

    link.plan = replace_it
    with pytest.raises(SourceError, match=r"was changed while it was downloaded|is damaged"):
        fetch(settings(link.port, tmp_path))


def test_a_private_certificate_is_trusted_by_its_ca_file_alone(
    bucket, server, tmp_path, monkeypatch
):
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    ca_file, *tls = make_ca_and_server(tmp_path)
    with proxy(server, tls=tls) as secure:
        told = {"aws_s3_endpoint": f"https://127.0.0.1:{secure.port}"}
        plain = settings(secure.port, tmp_path).model_copy(update=told)
        with pytest.raises(SourceError, match=r"is not trusted \(AWS_CA_BUNDLE=\(unset\)\)"):
            fetch(plain)
        assert content(fetch(plain.model_copy(update={"aws_ca_bundle": str(ca_file)}))) == FILES


def test_the_manifest_says_where_a_folder_came_from(bucket, server, tmp_path):
    told = json.loads((fetch(settings(server, tmp_path)) / MANIFEST).read_text())
    assert told["source"] == "s3://models/sd"
    assert set(told["files"]) == set(FILES)


@pytest.fixture
def common_runtime(monkeypatch):
    """Large objects go through the AWS Common Runtime; three MiB are large here. Ranges of a MiB
    mark its own ones."""
    pytest.importorskip("awscrt")
    monkeypatch.setattr(crt, "WORTH_BYTES", MIB)
    monkeypatch.setattr(crt, "PART_BYTES", 5 * MIB)


def test_large_objects_go_through_the_common_runtime(bucket, link, tmp_path, common_runtime):
    assert content(fetch(settings(link.port, tmp_path))) == FILES
    assert len(link.gets("model.safetensors")) == 1, (
        "one request of its own instead of twelve ranges"
    )


def test_what_the_common_runtime_brings_is_verified_too(bucket, link, tmp_path, common_runtime):
    link.plan = lambda method, path, headers: (
        Fault(flip=True) if path.endswith("model.safetensors") else None
    )
    with pytest.raises(SourceError, match=r"unet/model.safetensors is damaged"):
        fetch(settings(link.port, tmp_path))
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_failure_of_the_common_runtime_ends_in_ranges(bucket, link, tmp_path, common_runtime):
    """Its first request is answered by a 404, which it does not repeat."""
    first = threading.Event()

    def refuse_once(method, path, headers):
        if path.endswith("model.safetensors") and not first.is_set():
            first.set()
            return Fault(status=404, code="NoSuchKey")

    link.plan = refuse_once
    assert content(fetch(settings(link.port, tmp_path))) == FILES
    assert len(link.gets("model.safetensors")) >= 12
