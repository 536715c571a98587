"""KServe's v1 and v2 protocols over REST and gRPC, with KServe's and Triton's clients."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.text.running import Server
from tests.triton import grpc as triton_grpc


def test_v1_answers_one_prediction_an_instance_in_order(server: Server) -> None:
    body = {
        "instances": [{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]}],
        "parameters": {"max_tokens": 4, "temperature": 0},
    }
    answer = httpx.post(f"{server.url}/v1/models/tiny:predict", json=body)
    first, second = answer.json()["predictions"]
    assert first["prompt"] == "one"
    assert first["text"]
    assert second["usage"]["completion_tokens"] <= 4


def test_v1_names_the_field_that_is_wrong(server: Server) -> None:
    body = {"instances": [{"prompt": "x", "temprature": 1}]}
    answer = httpx.post(f"{server.url}/v1/models/tiny:predict", json=body)
    assert answer.status_code == 400
    assert "instances[0].temprature" in answer.json()["error"]


def _inputs(module: object, prompts: list[str]) -> list[object]:
    tensor = module.InferInput("prompt", [len(prompts)], "BYTES")
    tensor.set_data_from_numpy(np.array([prompt.encode() for prompt in prompts], dtype=object))
    return [tensor]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_v2_answers_a_text_a_prompt(server: Server, transport: str) -> None:
    module = triton_http if transport == "http" else triton_grpc
    url = server.url.removeprefix("http://") if transport == "http" else server.grpc
    client = module.InferenceServerClient(url)
    parameters = (
        {"max_tokens": 6, "temperature": 0, "seed": 1}
        if transport == "http"
        else {"max_tokens": 6, "seed": 1}
    )
    reply = client.infer("tiny", _inputs(module, ["one", "two"]), parameters=parameters)
    assert reply.as_numpy("text").shape == (2,)
    assert {str(reason).strip("b'") for reason in reply.as_numpy("finish_reason")} <= {
        "length",
        "stop",
    }
    client.close()


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_v2_over_rest_takes_and_gives_tensors_as_json_and_as_bytes(
    server: Server, binary_in: bool, binary_out: bool
) -> None:
    tensor = triton_http.InferInput("prompt", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"one", b"two"], dtype=object), binary_data=binary_in)
    limit = triton_http.InferInput("max_tokens", [1], "INT64")
    limit.set_data_from_numpy(np.array([6]), binary_data=binary_in)
    outputs = [triton_http.InferRequestedOutput("text", binary_data=binary_out)]
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        reply = client.infer(
            "tiny", [tensor, limit], outputs=outputs, parameters={"temperature": 0}
        )
    whole = httpx.post(
        f"{server.url}/v1/models/tiny:predict",
        json={"instances": ["one", "two"], "parameters": {"max_tokens": 6, "temperature": 0}},
    ).json()["predictions"]
    given = [
        text.decode() if isinstance(text, bytes) else text
        for text in reply.as_numpy("text").tolist()
    ]
    assert given == [each["text"] for each in whole]
    assert reply.as_numpy("finish_reason") is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "Input should be"),
        (b'{"inputs": []}', "inputs"),
        (
            b'{"inputs": [{"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["a"]}]}',
            "prompt",
        ),
        (
            b'{"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [5]}]}',
            "prompt",
        ),
        (
            b'{"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}',
            "named prompt",
        ),
        (
            b'{"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}],'
            b' "outputs": [{"name": "image"}]}',
            "'image' is not made here; there are text and finish_reason",
        ),
    ],
    ids=str,
)
def test_v2_over_rest_names_what_is_wrong(server: Server, body: bytes, words: str) -> None:
    answer = httpx.post(
        f"{server.url}/v2/models/tiny/infer", content=body
    )  # no content type, as Triton's client
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


def test_v2_errors_have_grpc_codes(server: Server) -> None:
    client = triton_grpc.InferenceServerClient(server.grpc)
    with pytest.raises(InferenceServerException) as refused:
        client.infer("tiny", _inputs(triton_grpc, ["x" * 600]))
    assert "512" in refused.value.message()
    assert "INVALID_ARGUMENT" in str(refused.value.status())
    client.close()


def test_v2_generate_streams_what_it_would_answer_whole(server: Server) -> None:
    body = {"text_input": "one", "parameters": {"max_tokens": 12, "temperature": 0}}
    whole = httpx.post(f"{server.url}/v2/models/tiny/generate", json=body).json()
    with httpx.stream("POST", f"{server.url}/v2/models/tiny/generate_stream", json=body) as stream:
        events = [json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line]
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert events[-1]["finish_reason"] == whole["finish_reason"]
    for wrong in ({"max_new": 1}, 5, [[]]):
        assert (
            httpx.post(
                f"{server.url}/v2/models/tiny/generate", json=body | {"parameters": wrong}
            ).status_code
            == 400
        )


def test_the_model_configuration_has_tritons_shape(server: Server) -> None:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as client:
        told = client.get_model_config(server.name)
    assert [(each["name"], each["data_type"]) for each in told["output"]] == [
        ("text", "TYPE_STRING"),
        ("finish_reason", "TYPE_STRING"),
    ]


def test_metadata_tells_inputs_outputs_and_the_engine(server: Server) -> None:
    described = httpx.get(f"{server.url}/v2/models/tiny").json()
    assert [tensor["name"] for tensor in described["outputs"]] == ["text", "finish_reason"]
    assert described["properties"]["context"] == 512
    assert described["properties"]["slots"] == 8
