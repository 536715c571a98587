"""What is sent to do harm, or by a broken program: every answer is one of the documented codes, and
the server goes on."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import grpc
import httpx
import psutil
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from atelier import bounds
from tests.conftest import Server, StartServer
from tests.protocols.pictures import FAST, SIZE, encoded

LIMIT = 2 * 2**20
KEPT_OPEN = 300


@pytest.fixture(scope="module")
def pictures(start_server: StartServer, tiny_checkpoint: Any) -> Iterator[Server]:
    limits = {"max_body_bytes": str(LIMIT), "request_timeout": "20", "max_queue_size": "16"}
    with start_server(model_id=str(tiny_checkpoint), **limits) as running:
        yield running


@pytest.fixture(autouse=True)
def goes_on(pictures: Server, scenes: Server) -> Iterator[None]:
    """Whatever came before, both servers answer afterwards."""
    yield
    body = {"prompt": "a", "size": SIZE, **FAST}
    answer = httpx.post(f"{pictures.url}/v1/images/generations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    body = {"prompt": "a", "max_tokens": 2}
    assert httpx.post(f"{scenes.url}/v1/completions", json=body, timeout=60).status_code == 200


# Connections


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_headers_without_end_are_cut_off_early(pictures: Server) -> None:
    with closing(connect(pictures)) as client:
        sent, part = 0, b"x" * 2**20
        client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\nX-Long: ")
        try:
            for _ in range(50):
                sent += client.send(part)
            answer = client.recv(4096)
        except OSError:  # it closed while we were sending
            answer = b"HTTP/1.1 431"
        assert answer.startswith(b"HTTP/1.1 431")
        assert sent < 20 * len(part)


def test_long_headers_are_named(pictures: Server) -> None:
    with closing(connect(pictures)) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nX-Long: " + b"x" * (bounds.MAX_HEADER_BYTES + 20_000))
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 431") and b"65536 bytes" in answer


def test_headers_up_to_the_bound_are_read(pictures: Server) -> None:
    headers = {"X-Long": "x" * (bounds.MAX_HEADER_BYTES - 4096)}
    assert httpx.get(f"{pictures.url}/v2/health/live", headers=headers).status_code == 200


def test_trailers_without_end_are_cut_off_too(pictures: Server) -> None:
    with closing(connect(pictures)) as client:
        client.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\n{}\r\n0\r\nX-Long: "
        )
        began = time.monotonic()
        try:
            for _ in range(50):
                client.sendall(b"x" * 2**20)
            assert client.recv(4096).startswith(b"HTTP/1.1 4")
        except OSError:
            pass  # it closed while we were sending
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/models/tiny:predict"])
def test_a_body_that_drips_meets_its_deadline(pictures: Server, path: str) -> None:
    with closing(connect(pictures)) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n"
            "X-Request-Timeout: 1\r\n\r\n".encode()
        )
        began, answer = time.monotonic(), b""
        client.settimeout(0.2)
        while not answer and time.monotonic() - began < 15:
            client.sendall(b" ")
            with suppress(TimeoutError):
                answer = client.recv(4096)
        client.settimeout(10)
        client.sendall(b" " * 10)  # what comes after the answer does not cost the client the answer
        time.sleep(0.3)
        client.sendall(b" " * 10)
        while more := client.recv(4096):
            answer += more
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"within 1 s" in answer


def test_large_bodies_share_a_budget(pictures: Server) -> None:
    """A fifth body of the largest size waits for none of the four that are held open."""
    held = []
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: {LIMIT}\r\n\r\n"
    for _ in range(bounds.BODIES_AT_ONCE):
        client = connect(pictures)
        client.sendall(head.encode() + b" " * (LIMIT - 1))
        held.append(client)
    try:
        for _ in range(50):
            answer = httpx.post(f"{pictures.url}/v1/images/generations", content=b" " * LIMIT)
            if answer.status_code == 429:
                break
            time.sleep(0.1)
        assert answer.status_code == 429 and answer.headers["retry-after"]
        small = httpx.post(f"{pictures.url}/v1/images/generations", json={"prompt": 5})
        assert small.status_code == 400
    finally:
        for client in held:
            client.close()


def test_hundreds_of_idle_connections_keep_nobody_out(pictures: Server) -> None:
    held = [connect(pictures) for _ in range(KEPT_OPEN)]
    try:
        for client in held[::2]:
            client.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost:")
        assert httpx.get(f"{pictures.url}/v2/health/live").status_code == 200
    finally:
        for client in held:
            client.close()


def test_clients_that_vanish_leave_nothing_open(pictures: Server) -> None:
    process = psutil.Process(pictures.process.pid)
    before = process.num_fds()
    body = json.dumps({"prompt": "a", "size": SIZE, "steps": 100}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(200):
        with closing(connect(pictures)) as client:
            client.sendall(head.encode() + body)
    ends = time.monotonic() + 20
    while process.num_fds() > before + 5 and time.monotonic() < ends:
        time.sleep(0.1)
    assert process.num_fds() <= before + 5


def test_a_crowd_meets_documented_codes_only(pictures: Server) -> None:
    def ask(index: int) -> int:
        body = {"prompt": str(index), "size": SIZE, **FAST}
        return httpx.post(
            f"{pictures.url}/v1/images/generations", json=body, timeout=60
        ).status_code

    with ThreadPoolExecutor(60) as pool:
        codes = set(pool.map(ask, range(150)))
    assert codes <= {200, 429} and 200 in codes


# Bodies for pictures


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def text_of(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


BAD_PICTURES = {
    "a bomb": text_of(png(30_000, 30_000, b"\0" * 2**20)),
    "a line": text_of(png(1, 2**20, b"\0\0\0\0" * 2**20)),
    "cut short": text_of(png(64, 64, b"\0" + b"\xc8" * 192)),
    "an archive": text_of(b"PK\x03\x04" + b"x" * 100),
    "no picture": "aGVsbG8=",
    "a link": "http://169.254.169.254/latest/meta-data",
    "half a link": "http://[::1",
    "a file": "file:///etc/passwd",
    "a number": 5,
    "an object": {"a": 1},
    "nested": [[["x"]]],
}
ODD_FIELDS: dict[str, dict[str, Any]] = {
    "sigmas of text": {"sigmas": ["a"]},
    "sigmas nested": {"sigmas": [[1.0]]},
    "no sigmas": {"sigmas": []},
    "too many sigmas": {"sigmas": [0.5] * 100_000},
    "timesteps of fractions": {"timesteps": [0.5]},
    "a list of prompts": {"prompt_2": ["a", "b"]},
    "a long second prompt": {"prompt_2": "x" * 10**6},
    "a callback": {"callback_on_step_end": "x"},
    "latents": {"latents": [1, 2]},
    "embeddings": {"prompt_embeds": [[1]]},
    "an output type": {"output_type": "latent"},
    "eta of text": {"eta": "x"},
    "eta without end": {"eta": 1e300},
    "a rescale of a list": {"guidance_rescale": [1]},
    "a size that grows": {"width": 65536},
    "an unknown scheduler": {"scheduler": "__import__"},
    "a scheduler of a path": {"scheduler": "os.path"},
    "weights without end": {"lora": {"a": 1e300}},
    "an argument of a megabyte": {"x" * 10**6: 1},
}


@pytest.mark.parametrize("field", ["image", "mask_image"])
@pytest.mark.parametrize("what", BAD_PICTURES)
def test_a_bad_picture_is_a_bad_request(pictures: Server, what: str, field: str) -> None:
    fields = {"prompt": "a", "image": text_of(encoded((1, 2, 3))), field: BAD_PICTURES[what]}
    url = f"{pictures.url}/v1/models/tiny:predict"
    answer = httpx.post(url, json={"instances": [fields]}, timeout=30)
    scaled = (what, field) == ("a line", "mask_image")  # to the size of its picture
    assert answer.status_code == (200 if scaled else 400), answer.text[:300]


@pytest.mark.parametrize("what", ODD_FIELDS)
def test_an_odd_field_is_a_bad_request(pictures: Server, what: str) -> None:
    body = {"prompt": "a", "width": 64, "num_inference_steps": 2} | ODD_FIELDS[what]
    url = f"{pictures.url}/v1/models/tiny:predict"
    answer = httpx.post(url, json={"instances": [body]}, timeout=30)
    assert answer.status_code == 400, answer.text[:300]
    assert len(answer.content) < 8000


# Bodies for both

ANYWHERE = {
    "brackets": b"[" * 200_000,
    "a deep list": b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}",
    "a long number": b'{"prompt":"a","seed":' + b"9" * 100_000 + b"}",
    "infinity": b'{"prompt":"a","temperature":1e999}',
    "not a number": b'{"prompt":"a","temperature":NaN}',
    "half a surrogate": b'{"prompt":"\\ud800"}',
    "no UTF-8": b'{"prompt":"\xff\xfe"}',
    "nothing": b"",
    "null": b"null",
    "a word": b'"prompt"',
    "one name a thousand times": b"{" + b'"prompt":5,' * 1000 + b'"prompt":5}',
}
ROUTES = {
    "pictures": ("/v1/images/generations", "/v1/models/tiny:predict", "/v2/models/tiny/infer"),
    "text": (
        "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/tokenize",
        "/detokenize", "/v1/models/scenes:predict", "/v2/models/scenes/infer",
        "/v2/models/scenes/generate", "/v1/messages/count_tokens",
        "/v1/responses",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROUTES)
@pytest.mark.parametrize("what", ANYWHERE)
def test_a_body_that_is_none_is_a_bad_request(
    pictures: Server, scenes: Server, kind: str, what: str
) -> None:
    server = pictures if kind == "pictures" else scenes
    for path in ROUTES[kind]:
        answer = httpx.post(
            server.url + path,
            content=ANYWHERE[what],
            headers={"Content-Type": "application/json"},
            timeout=30,
        )
        assert answer.status_code == 400, (path, answer.text[:300])


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1e3", "", "٣", "99999999999"])
def test_a_length_of_the_header_that_is_none(pictures: Server, length: str) -> None:
    answer = httpx.post(
        f"{pictures.url}/v2/models/tiny/infer",
        content=b"{}",
        headers={b"Inference-Header-Content-Length": length.encode()},
    )
    assert answer.status_code == 400


def test_grpc_calls_that_are_none_have_documented_codes(pictures: Server) -> None:
    def infer(**fields: Any) -> Any:
        request = pb.ModelInferRequest(model_name="tiny", **fields)
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelInferResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            call(request, timeout=30)
        return refused.value.code()

    tensor = pb.ModelInferRequest.InferInputTensor
    contents = pb.InferTensorContents(bytes_contents=[b"a"])
    prompt = tensor(name="prompt", datatype="BYTES", shape=[1], contents=contents)
    bad = grpc.StatusCode.INVALID_ARGUMENT
    with grpc.insecure_channel(pictures.grpc) as channel:
        assert infer() == bad
        assert infer(inputs=[prompt], parameters={"seed": pb.InferParameter()}) == bad
        many = tensor(name="prompt", datatype="BYTES", shape=[10**9], contents=contents)
        assert infer(inputs=[many]) == bad
        negative = tensor(name="prompt", datatype="BYTES", shape=[-1], contents=contents)
        assert infer(inputs=[negative]) == bad
        odd = tensor(name="prompt", datatype="FP8", shape=[1], contents=contents)
        assert infer(inputs=[odd]) == bad
        load = channel.unary_unary(
            "/inference.GRPCInferenceService/RepositoryModelLoad",
            pb.RepositoryModelLoadRequest.SerializeToString,
            pb.RepositoryModelLoadResponse.FromString,
        )
        assert load(pb.RepositoryModelLoadRequest(model_name="tiny"), timeout=30).isLoaded
        with pytest.raises(grpc.RpcError) as refused:
            load(pb.RepositoryModelLoadRequest(model_name="other"), timeout=30)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    for name, status in (("tiny", 200), ("other", 404)):
        answer = httpx.post(f"{pictures.url}/v2/repository/models/{name}/load")
        assert answer.status_code == status, answer.text


# Bodies for language models


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}


def tool(name: Any, parameters: Any = None) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": parameters}}]


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}, "required": ["a"]}
    return found


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
ODD_CHATS: dict[str, tuple[dict[str, Any], set[int]]] = {
    "calls that are a number": ({"messages": [said("assistant", "", tool_calls=5)]}, {400}),
    "calls of numbers": ({"messages": [said("assistant", "", tool_calls=[5])]}, {400}),
    "arguments of brackets": (
        {"messages": [said("user", "x"), said("assistant", "", tool_calls=[CALL])]},
        {200, 400},
    ),
    "a schema of itself": ({"response_format": schema({"$ref": "#"})}, {400}),
    "a schema that points nowhere": ({"response_format": schema({"$ref": "#/x"})}, {400}),
    "a schema of the web": ({"response_format": schema({"$ref": "http://a/b"})}, {400}),
    "a deep schema": ({"response_format": schema(nested(50))}, {200, 400}),
    "a deeper schema": ({"response_format": schema(nested(200))}, {400}),
    "a schema of odd types": ({"response_format": schema({"type": 5})}, {400}),
    "properties that are a list": ({"response_format": schema({"properties": [1]})}, {400}),
    "a regex that explodes": (
        {"response_format": schema({"type": "string", "pattern": "(a|aa)+" * 200})},
        {200, 400},
    ),
    "a regex that repeats": (
        {"response_format": schema({"type": "string", "pattern": "(((a{1000}){1000}){1000})"})},
        {200, 400},
    ),
    "a regex that is none": (
        {"response_format": schema({"type": "string", "pattern": "(((("})},
        {400},
    ),
    "an impossible number": (
        {"response_format": schema({"type": "integer", "minimum": 5, "maximum": 1})},
        {400},
    ),
    "a tool named like its end": ({"tools": tool("</tool_call>")}, {400}),
    "a tool without a name": ({"tools": tool("")}, {400}),
    "a tool named by a number": ({"tools": tool(5)}, {400}),
    "a tool of an odd schema": (
        {"tools": tool("f", {"properties": {"a": {"type": {"x": 1}}}}), "tool_choice": "required"},
        {400},
    ),
    "a tool that must be an odd one": (
        {"tools": tool("f", {"properties": 5, "required": 7}), "tool_choice": "required"},
        {400},
    ),
    "a penalty next to nothing": ({"repetition_penalty": 1e-300}, {400}),
    "a heat next to nothing": ({"temperature": 1e-300}, {200}),
    "top_p next to nothing": ({"top_p": 1e-300}, {200}),
    "a bias for no token": ({"logit_bias": {"99999999": 1}}, {400}),
    "a template of one's own": (
        {"chat_template_kwargs": {"chat_template": "{% for a in range(99999) %}{% endfor %}"}},
        {400},
    ),
    "messages by another way": ({"chat_template_kwargs": {"messages": []}}, {400}),
    "tokenizing by another way": ({"chat_template_kwargs": {"tokenize": True}}, {400}),
    "an argument that no template reads": ({"chat_template_kwargs": {"nobody": 1}}, {200}),
    "a role of a list": ({"messages": [{"role": ["user"], "content": "x"}]}, {400}),
    "a role nobody knows": ({"messages": [said("\0", "x")]}, {200, 400}),
    "content of a number": ({"messages": [said("user", 5)]}, {400}),
    "content of odd parts": ({"messages": [said("user", [5, None, {"type": "text"}])]}, {400}),
    "a message that is none": ({"messages": [None]}, {400}),
    "no bytes but zero": ({"messages": [said("user", "\0" * 10)]}, {200}),
    "stop without a text": ({"stop": [""]}, {200}),
    "more choices than there are": ({"n": 1000}, {400}),
    "options that are text": ({"stream": True, "stream_options": "x"}, {400}),
}


@pytest.mark.parametrize("what", ODD_CHATS)
def test_an_odd_chat_has_a_documented_code(scenes: Server, what: str) -> None:
    more, codes = ODD_CHATS[what]
    body = {"model": "scenes", "max_tokens": 4, "messages": [said("user", "hi")]} | more
    answer = httpx.post(f"{scenes.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code in codes, answer.text[:300]
    streamed = httpx.post(
        f"{scenes.url}/v1/chat/completions", json={"stream": True} | body, timeout=60
    )
    assert streamed.status_code in codes, streamed.text[:300]


ODD_MESSAGES: dict[str, dict[str, Any]] = {
    "messages of a number": {"messages": 5},
    "a message that is none": {"messages": [None]},
    "a system of lists": {"system": [[1]]},
    "a result of a number": {
        "messages": [said("user", [{"type": "tool_result", "tool_use_id": 5, "content": 5}])]
    },
    "a block of no type": {"messages": [said("user", [{}])]},
    "a text of a number": {"messages": [said("user", [{"type": "text", "text": 5}])]},
    "a use without a name": {
        "messages": [said("assistant", [{"type": "tool_use", "id": "a", "input": 5}])]
    },
    "tools of text": {"tools": "x"},
    "a tool of lists": {"tools": [[1]]},
    "an odd tool": {"tools": [{"name": "f", "input_schema": {"properties": 5}}]},
    "a choice of a number": {"tool_choice": 5},
    "tokens of text": {"max_tokens": "x"},
    "stops of numbers": {"stop_sequences": [1]},
}


@pytest.mark.parametrize("what", ODD_MESSAGES)
def test_an_odd_message_is_a_bad_request(scenes: Server, what: str) -> None:
    body = {"max_tokens": 4, "messages": [said("user", "hi")]} | ODD_MESSAGES[what]
    answer = httpx.post(f"{scenes.url}/v1/messages", json=body, timeout=60)
    assert answer.status_code == 400, answer.text[:300]
    if what != "tokens of text":
        counted = httpx.post(f"{scenes.url}/v1/messages/count_tokens", json=body, timeout=60)
        assert counted.status_code in (200, 400), counted.text[:300]


def test_what_one_caller_asked_is_no_ones_to_find_out(start_server: StartServer) -> None:
    """`cached_tokens` tells how much of a prompt was asked before: within one key."""
    body = {"prompt": "a secret that is long enough to be kept " * 4, "max_tokens": 1}

    def cached(server: Server, key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    with start_server(model_id="builtin/scenes", api_keys="one,two") as server:
        assert cached(server, "one") == 0
        assert cached(server, "one") > 0
        assert cached(server, "two") == 0
        assert cached(server, "two") > 0
