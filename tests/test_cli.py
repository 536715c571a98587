"""The command line as its users run it: processes, exit codes, and a line instead of a traceback
for what can go wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from atelier import __version__
from atelier.cli.main import app
from tests.conftest import ROOT, free_port
from tests.sources.checkpoints import pipeline, write_weights

TINY = ("--steps", "2", "--width", "32", "--height", "32")


def atelier(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command; whatever happens, a traceback is a fault."""
    paths = {
        "PYTHONPATH": f"{ROOT / 'runtime'}{os.pathsep}{ROOT}",
        "OMP_NUM_THREADS": "1",
        "DEVICE": "cpu",
    }
    command = [sys.executable, "-m", "atelier", *map(str, arguments)]
    given = {name.upper(): value for name, value in environment.items()}
    done = subprocess.run(
        command, env=os.environ | paths | given, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def refused(*arguments: str | Path, **environment: str) -> str:
    """The one line that a command ended with, whose exit code must be 1."""
    done = atelier(*arguments, **environment)
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("atelier: ")
    return line


def test_the_version_is_told() -> None:
    assert atelier("--version").stdout == f"atelier {__version__}\n"


def test_serve_stops_at_a_bad_value() -> None:
    assert (
        refused("serve", max_steps="x")
        == "atelier: MAX_STEPS='x' is not valid: allowed: a valid integer"
    )


def test_serve_refuses_several_workers() -> None:
    assert "--workers must be 1" in refused("serve", "--workers", "2")


def test_serve_refuses_options_that_nobody_knows() -> None:
    assert "--htp_port=8081" in refused("serve", "--htp_port=8081")


def test_serve_refuses_a_port_that_is_taken_before_it_loads_anything() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--grpc_port={port} cannot be listened on" in refused(
            "serve", f"--grpc_port={port}", f"--http_port={free_port()}", model_id="/nowhere"
        )


def test_serve_refuses_a_folder_of_temporary_files_that_no_socket_fits_in(tmp_path: Path) -> None:
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    assert f"TMPDIR={folder}: sockets of worker processes" in refused("serve", tmpdir=str(folder))


def test_serve_leaves_an_option_of_the_wrong_type_to_kserve() -> None:
    done = atelier("serve", "--http_port=web")
    assert done.returncode == 2
    assert "--http_port: invalid int value: 'web'" in done.stderr


def test_serve_ends_if_the_model_is_nowhere() -> None:
    port = free_port()
    options = f"--http_port={port}", f"--grpc_port={free_port()}"
    done = atelier("serve", "--model_dir=/nowhere/at/all", *options, log_level="error")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "MODEL_ID=/nowhere/at/all is not a path on this machine" in line
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_generate_writes_the_picture_that_its_ending_names(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "cat.webp"
    done = atelier("generate", "a cat", "-o", output, "-m", tiny_checkpoint, *TINY, "--seed", "7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{output} (seed 7)"
    with Image.open(output) as picture:
        assert (picture.format, picture.size) == ("WEBP", (32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["cat.webp"]


def test_generate_leaves_the_old_picture_if_the_model_refuses_the_size(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(b"old")
    done = atelier(
        "generate",
        "a cat",
        "-o",
        tmp_path / "cat.png",
        "-m",
        tiny_checkpoint,
        "--width",
        "33",
        log_level="error",
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("atelier: width: 33 is not divisible by")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("cat.png", b"old")]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "cat.gif"], "cat.gif: the ending must be one of .png, .jpg, .jpeg, .webp"),
        (["-o", "nowhere/cat.png"], "nowhere/cat.png: the folder"),
        (["-o", "cat.png", "--steps", "0"], "num_inference_steps: 0 is not valid"),
        (["-o", "cat.png", "--steps", "9999"], "num_inference_steps: 9999 is above MAX_STEPS=150"),
    ],
)
def test_generate_refuses_before_it_loads(arguments: list[str], told: str) -> None:
    assert told in refused("generate", "a cat", *arguments, "-m", "/nowhere")
    assert not (Path.cwd() / "cat.png").exists()


def test_generate_says_that_the_model_is_nowhere(tmp_path: Path) -> None:
    done = atelier(
        "generate", "a cat", "-o", tmp_path / "cat.png", "-m", "/nowhere", log_level="error"
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("atelier: MODEL_ID=/nowhere is not a path")


def test_doctor_ends_with_1_if_something_is_wrong(tmp_path: Path) -> None:
    sound, broken = pipeline(tmp_path / "sound"), pipeline(tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    settings = {"CACHE_DIR": str(tmp_path), "DEVICE": "cpu"}
    assert CliRunner().invoke(app, ["doctor", "-m", str(sound)], env=settings).exit_code == 0
    result = CliRunner().invoke(app, ["doctor", "-m", str(broken)], env=settings)
    assert result.exit_code == 1
    assert "diffusion_pytorch_model.safetensors" in result.stdout.partition("Problems")[2]


def test_fetch_copies_a_source_and_names_the_folder(tmp_path: Path) -> None:
    source = write_weights(tmp_path / "model.safetensors", {"weight": (2,)})
    done = atelier("fetch", source, tmp_path / "here")
    assert done.returncode == 0, done.stderr
    copied = Path(done.stdout.strip())
    assert copied.read_bytes() == source.read_bytes() and copied.parent == tmp_path / "here"


def test_fetch_says_what_it_cannot_find(tmp_path: Path) -> None:
    assert "MODEL_ID=/nowhere is not a path" in refused("fetch", "/nowhere", tmp_path)


def test_settings_shows_values_but_no_secrets() -> None:
    done = atelier("settings", max_steps="99", hf_token="hunter2")
    assert done.returncode == 0
    assert "hunter2" not in done.stdout
    [line] = [line for line in done.stdout.splitlines() if "MAX_STEPS" in line]
    assert "150" in line and "99" in line


def test_settings_prints_markdown_of_the_defaults() -> None:
    done = atelier("settings", "--markdown", max_steps="99")
    assert "| `MAX_STEPS` | `150` | Largest num_inference_steps. |" in done.stdout.splitlines()
    assert "99" not in done.stdout


def test_settings_refuses_a_file_without_a_place_for_the_table(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("no markers")
    assert "page.md needs the lines" in refused("settings", "--into", tmp_path / "page.md")
