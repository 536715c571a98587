"""What the server says for a child engine, and of one that died, with stand-ins for vLLM and
llama.cpp."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest

from atelier.settings import Settings
from atelier.text.child.process import ProcessEngine
from tests.text.running import Server, serving

SOURCE = Path(__file__).with_name("stand_in.py")
ASK = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "draw", "parameters": {"type": "object"}}}


def engine(folder: Path, program: str) -> Path:
    """An engine's environment folder with the stand-in as its program."""
    path = folder / "bin" / program
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\n{SOURCE.read_text()}")
    path.chmod(0o755)
    return folder


def arguments(server: Server) -> list[str]:
    given: list[str] = json.loads((server.log.parent / "bin" / "arguments").read_text())
    return given


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A checkpoint whose chat template teaches no form of calls that is known."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "model").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    settings = {
        "ENGINE": "vllm",
        "ENGINE_PATH": str(engine(folder, "python")),
        "WARMUP": "off",
        "MCP_ENDPOINT_KEY": "secret",
        "aws_secret_access_key": "secret",
        "VLLM_LOGGING_LEVEL": "DEBUG",
    }
    with serving(folder / "model", folder / "log", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llamacpp")
    (folder / "model").mkdir()
    for name in ("mmproj-F16.gguf", "tiny-Q4_K_M.gguf"):
        (folder / "model" / name).write_bytes(b"GGUF")
    settings = {
        "ENGINE": "llamacpp",
        "ENGINE_PATH": str(engine(folder, "llama-server")),
        "WARMUP": "off",
        "MAX_MODEL_LEN": "8192",
        "MAX_NUM_SEQS": "8",
    }
    with serving(folder / "model", folder / "log", **settings) as running:
        yield running


def test_each_slot_of_llamacpp_has_the_whole_context(llamacpp: Server) -> None:
    given = arguments(llamacpp)
    assert given[given.index("--ctx-size") + 1] == str(8 * 8192)
    assert given[given.index("--parallel") + 1] == "8"


def test_the_projector_of_pictures_is_not_taken_for_the_model(llamacpp: Server) -> None:
    given = arguments(llamacpp)
    assert given[given.index("--model") + 1].endswith("/tiny-Q4_K_M.gguf")


@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_llamacpp_tokenizes_a_prompt(llamacpp: Server, prefix: str) -> None:
    def ask(path: str, **body: Any) -> Any:
        return httpx.post(f"{llamacpp.url}{prefix}{path}", json=body).json()

    assert ask("/tokenize", prompt="hi") == {
        "count": 3,
        "max_model_len": 8192,
        "tokens": [1, 104, 105],
    }
    assert ask("/tokenize", prompt="hi", add_special_tokens=False)["tokens"] == [104, 105]
    assert ask("/tokenize", prompt="hi", return_token_strs=True)["token_strs"] == ["h", "i"]
    assert ask("/detokenize", tokens=[104, 105]) == {"prompt": "hi"}
    assert ask("/tokenize", content="hi") == {"tokens": [104, 105]}  # its own words, its own answer


def test_llamacpp_does_not_tokenize_messages(llamacpp: Server) -> None:
    answer = httpx.post(f"{llamacpp.url}/tokenize", json={"messages": ASK})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    answer = httpx.post(f"{llamacpp.url}/tokenize", json={"prompt": 5})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_embeddings_that_the_engine_lacks_are_not_advertised(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="has no /v1/embeddings; it answers /v1/chat"):
        client.embeddings.create(model="tiny", input="x")
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths and "/v1/embeddings" not in paths


def test_tools_without_a_parser_name_the_setting(vllm: Server) -> None:
    assert "--tool-call-parser" not in arguments(vllm)
    body = {"model": "tiny", "messages": ASK, "max_tokens": 4}
    answer = httpx.post(f"{vllm.url}/v1/chat/completions", json=body | {"tools": [TOOL]})
    assert answer.status_code == 400
    assert "set TOOL_CALL_PARSER" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "tools"
    client = anthropic.Anthropic(base_url=vllm.url, api_key="none", max_retries=0)
    tool: Any = {"name": "draw", "input_schema": {"type": "object"}}
    with pytest.raises(anthropic.BadRequestError, match="TOOL_CALL_PARSER"):
        client.messages.create(
            model="tiny", max_tokens=4, messages=[{"role": "user", "content": "x"}], tools=[tool]
        )
    plain = httpx.post(f"{vllm.url}/v1/chat/completions", json=body).json()
    assert plain["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize(
    ("prompt", "status", "said"),
    [
        ("busy", 429, "too many requests"),
        ("gone", 404, "no such adapter"),
        ("asleep", 503, "the engine sleeps"),
        ("wrong", 400, "a bad prompt"),
    ],
)
def test_what_the_engine_refuses_keeps_its_status(
    vllm: Server, prompt: str, status: int, said: str
) -> None:
    handed_on = httpx.post(f"{vllm.url}/v1/completions", json={"prompt": prompt})
    body = {"instances": [{"prompt": prompt}]}
    translated = httpx.post(f"{vllm.url}/v1/models/tiny:predict", json=body)
    for answer in (handed_on, translated):
        assert answer.status_code == status
        assert said in answer.text
        if status in (429, 503):
            assert answer.headers["retry-after"] == "7"


def test_the_engine_gets_no_keys(vllm: Server) -> None:
    given = json.loads((vllm.log.parent / "bin" / "environment").read_text())
    assert given["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert not {"mcp_endpoint_key", "aws_secret_access_key", "pythonpath"} & {
        name.lower() for name in given
    }
    assert "secret" not in json.dumps(given)


def test_the_engine_outlives_the_thread_that_started_it_and_not_the_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    settings = Settings(
        engine="llamacpp", engine_path=str(engine(tmp_path / "engine", "llama-server"))
    )
    made = ProcessEngine(settings, tmp_path / "tiny.gguf", "tiny")
    starter = threading.Thread(target=made.start)
    starter.start()
    starter.join()
    try:
        time.sleep(0.3)
        assert made._process is not None and made._process.poll() is None
    finally:
        made.close()
    program = (
        "import signal, sys, time; from atelier.children import start_child;"
        "print(start_child(['/bin/sleep', '60'], signal.SIGKILL).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while child.name() != "sleep":
            time.sleep(0.01)
        parent.kill()
    ends = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_a_dead_engine_is_told_in_equal_words_and_when_it_is_back(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    folder = server.log.parent / "bin"
    (child,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(str(folder)) for word in (process.info["cmdline"] or [])[:2])
    ]
    (folder / "slow").write_text("2")
    os.kill(child.pid, signal.SIGKILL)
    ends = time.monotonic() + 30
    while (health := httpx.get(f"{server.url}/health")).status_code == 200:
        assert time.monotonic() < ends
        time.sleep(0.02)
    ready = httpx.get(f"{server.url}/v2/models/tiny/ready")
    asked = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": ASK})
    texts = (
        health.json()["status"],
        ready.json()["error"],
        asked.json()["error"]["message"],
    )
    for answer, text in zip((health, ready, asked), texts, strict=True):
        assert answer.status_code == 503
        assert f"{kind} stopped and is being restarted, expected in about" in text
        assert 1 <= int(answer.headers["retry-after"]) < 60
    while (health := httpx.get(f"{server.url}/health")).status_code != 200:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert health.json() == {"status": "ready"}
    assert "retry-after" not in health.headers
