"""Weights from a Hub: a small server on loopback that speaks the part of the Hub's interface that
downloads use."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atelier.errors import SourceError
from atelier.settings import load_settings
from atelier.sources import fetch, inspect
from atelier.sources.adapters import LORA_FILE, fetch_adapters
from atelier.sources.hub import needed, outlook
from tests.sources.checkpoints import pipeline

COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serves the repository `art/tiny`: a pipeline with variants, pickles and an ONNX copy that
    nobody needs."""
    root = pipeline(tmp_path / "repository")
    unet = root / "unet"
    plain = (unet / "diffusion_pytorch_model.safetensors").read_bytes()
    (unet / "diffusion_pytorch_model.fp16.safetensors").write_bytes(plain)
    (unet / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (root / "onnx").mkdir()
    (root / "onnx" / "model.onnx").write_bytes(b"onnx")
    (root / "tiny-pruned.safetensors").write_bytes(plain)
    asked = []
    known = [
        "api/models/art/tiny",
        *(f"api/models/art/tiny/revision/{name}" for name in (COMMIT, "v1", "main")),
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            path = self.path.partition("?")[0].strip("/")
            asked.append(path)
            if path.startswith("api/models/art/gated"):
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if path in known:
                return self._send(200, json.dumps(description()).encode())
            if path == f"api/models/art/tiny/tree/{COMMIT}":
                siblings = description()["siblings"]
                tree = [
                    {"type": "file", "path": f["rfilename"], "size": f["size"], "oid": "0"}
                    for f in siblings
                ]
                return self._send(200, json.dumps(tree).encode())
            if path.startswith("api/models/art/tiny/revision"):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            file = root / path.removeprefix(f"art/tiny/resolve/{COMMIT}/")
            if path.startswith("art/tiny/resolve") and file.is_file():
                content = file.read_bytes()
                told = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                return self._send(200, content, told)
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def _send(self, status, body, headers=()):
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    def description():
        files = [one for one in sorted(root.rglob("*")) if one.is_file()]
        siblings = [
            {"rfilename": str(one.relative_to(root)), "size": one.stat().st_size} for one in files
        ]
        return {
            "id": "art/tiny",
            "modelId": "art/tiny",
            "sha": COMMIT,
            "siblings": siblings,
            "tags": [],
        }

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield asked
    server.shutdown()
    server.server_close()


def files_of(folder):
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}


def test_only_what_a_load_needs_is_fetched(hub):
    folder = fetch(load_settings(model_id="art/tiny"))
    weights = {
        file for file in files_of(folder) if file.endswith((".safetensors", ".bin", ".onnx"))
    }
    assert weights == {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }
    assert inspect(folder).problems == ()
    assert not [one for one in hub if one.endswith((".bin", ".onnx", "fp16.safetensors"))]


def test_an_adapter_has_the_name_of_its_repository(hub, tmp_path):
    repository = tmp_path / "repository"
    weights = (repository / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(repository)
    repository.mkdir()
    for name in (LORA_FILE, "pytorch_lora_weights.bin"):
        (repository / name).write_bytes(weights)
    [source] = fetch_adapters(load_settings(lora_paths=["art/tiny@v1"]))
    assert files_of(source.path) == {LORA_FILE}
    assert source.name_of(source.path / LORA_FILE) == "tiny"
    with pytest.raises(
        SourceError,
        match=r"LORA_PATHS=art/other: the repository does not exist.* look at LORA_PATHS",
    ):
        fetch_adapters(load_settings(lora_paths=["art/other"]))


def test_a_variant_is_fetched_instead_of_the_plain_weights_where_it_exists(hub):
    folder = fetch(load_settings(model_id="art/tiny@v1", variant="fp16"))
    assert {one.name for one in (folder / "unet").glob("*.safetensors")} == {
        "diffusion_pytorch_model.fp16.safetensors"
    }
    assert inspect(folder, variant="fp16").problems == ()


def test_a_named_folder_is_filled_whole(hub, tmp_path):
    folder = fetch(load_settings(model_id="art/tiny"), into=tmp_path / "here")
    assert folder == tmp_path / "here"
    assert inspect(folder).problems == ()
    assert not (tmp_path / "here.partial").exists()


def test_offline_uses_the_cache_and_asks_nobody(hub):
    fetched = fetch(load_settings(model_id="art/tiny"))
    hub.clear()
    assert fetch(load_settings(model_id="art/tiny", hf_hub_offline=True)) == fetched
    assert hub == []


def test_offline_without_the_model_says_so(hub):
    for act in (fetch, outlook):
        with pytest.raises(
            SourceError, match=r"art/tiny: HF_HUB_OFFLINE=1 forbids asking the Hub, and the cache"
        ):
            act(load_settings(model_id="art/tiny", hf_hub_offline=True))
    assert hub == []


@pytest.mark.parametrize(
    ("model_id", "said"),
    [
        (
            "art/nothing",
            "does not exist, or needs a token with access: look at MODEL_ID and HF_TOKEN",
        ),
        ("art/gated", "is gated: set HF_TOKEN"),
        ("art/tiny@v9", "there is no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_told_in_terms_of_settings(hub, model_id, said):
    with pytest.raises(SourceError, match=said):
        fetch(load_settings(model_id=model_id, hf_token="hf_private"))


def test_a_hub_that_does_not_answer_is_told(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(
        SourceError, match=r"art/tiny is no path here, and the Hub does not answer; set HF_ENDPOINT"
    ):
        fetch(load_settings(model_id="art/tiny"))


def test_progress_ends_at_the_whole(hub):
    told = []
    fetch(load_settings(model_id="art/tiny"), progress=lambda *step: told.append(step))
    assert told and told[-1][0] == told[-1][1] > 0


def test_the_outlook_tells_what_a_fetch_would_bring_and_then_that_it_is_here(hub):
    there, line, lacking = outlook(load_settings(model_id="art/tiny"))
    assert there is None and "9 files" in line and lacking > 500
    fetched = fetch(load_settings(model_id="art/tiny"))
    assert outlook(load_settings(model_id="art/tiny")) == (fetched, "", 0)


@pytest.mark.parametrize(
    ("files", "variant", "kept"),
    [
        (["model.safetensors", "pytorch_model.bin"], "", ["model.safetensors"]),
        (["model.fp16.safetensors", "config.json"], "", ["config.json", "model.fp16.safetensors"]),
        (["pytorch_model.bin"], "", []),
        (["a.safetensors", "README.md"], "", ["a.safetensors"]),
        (
            ["pytorch_lora_weights.safetensors", "other.safetensors"],
            "",
            ["pytorch_lora_weights.safetensors"],
        ),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            "",
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ],
)
def test_the_files_needed_are_told_by_their_names(files, variant, kept):
    assert needed(files, variant, allow_pickle=False) == kept


def test_pickles_are_fetched_only_when_allowed():
    assert needed(["pytorch_model.bin"], "", allow_pickle=True) == ["pytorch_model.bin"]
