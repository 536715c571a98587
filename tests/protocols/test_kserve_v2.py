"""The v2 protocol, text and binary tensors, with the clients that people use: kserve's and
Triton's, REST and gRPC."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from kserve import (
    InferenceGRPCClient,
    InferenceRESTClient,
    InferInput,
    InferRequest,
    InferResponse,
    RESTConfig,
)
from tritonclient.utils import InferenceServerException

from tests.conftest import Server
from tests.protocols.pictures import encoded, opened
from tests.triton import grpc as triton_grpc

FIELDS = {"num_inference_steps": 3, "width": 64, "height": 48}
PROMPTS = ("a cat", "a dog")


def tensor(name: str, values: list[Any], datatype: str) -> InferInput:
    made = InferInput(name, [len(values)], datatype)
    kind = {"INT64": np.int64, "FP32": np.float32, "BYTES": object}[datatype]
    made.set_data_from_numpy(np.array(values, dtype=kind), binary_data=False)
    return made


def request_of(server: Server, *inputs: InferInput, **parameters: Any) -> InferRequest:
    return InferRequest(model_name=server.model, infer_inputs=list(inputs), parameters=parameters)


def pictures_of(response: InferResponse) -> list[bytes]:
    [image] = [output for output in response.outputs if output.name == "image"]
    return [
        each if isinstance(each, bytes) else base64.b64decode(each)
        for each in image.as_numpy().tolist()
    ]


def seeds_of(response: InferResponse) -> list[int]:
    return next(output for output in response.outputs if output.name == "seed").as_numpy().tolist()


@pytest.fixture
async def rest(server: Server) -> AsyncIterator[InferenceRESTClient]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=120))
    yield client
    await client.close()


@pytest.fixture
async def rpc(server: Server) -> AsyncIterator[InferenceGRPCClient]:
    client = InferenceGRPCClient(server.grpc, timeout=120)
    yield client
    await client.close()


@pytest.fixture
def triton(server: Server) -> Iterator[triton_http.InferenceServerClient]:
    client = triton_http.InferenceServerClient(
        server.url.removeprefix("http://"), network_timeout=120
    )
    yield client
    client.close()


@pytest.fixture
def triton_rpc(server: Server) -> Iterator[triton_grpc.InferenceServerClient]:
    client = triton_grpc.InferenceServerClient(server.grpc)
    yield client
    client.close()


Columns = dict[str, tuple[str, list[Any]]]


@pytest.fixture(scope="module")
def by_v1(server: Server) -> list[bytes]:
    """The two pictures as v1 gives them; every other protocol must give the same."""
    body = {
        "instances": [{"prompt": p, "seed": i} for i, p in enumerate(PROMPTS)],
        "parameters": FIELDS,
    }
    answer = httpx.post(
        f"{server.url}/v1/models/{server.model}:predict", json=body, timeout=120
    ).json()
    return [base64.b64decode(each["image"]["b64"]) for each in answer["predictions"]]


def same(ones: list[bytes], others: list[bytes]) -> bool:
    pairs = [
        (np.asarray(opened(a)), np.asarray(opened(b))) for a, b in zip(ones, others, strict=True)
    ]
    return all(np.abs(a.astype(int) - b.astype(int)).max() <= 1 for a, b in pairs)


async def test_kserves_rest_client_speaks_v1(server: Server, by_v1: list[bytes]) -> None:
    client = InferenceRESTClient(RESTConfig(protocol="v1", timeout=120))
    assert await client.is_model_ready(server.url, server.model)
    data = {"instances": [{"prompt": PROMPTS[0], "seed": 0, **FIELDS}]}
    answer = await client.infer(server.url, data, model_name=server.model)
    await client.close()
    assert same([base64.b64decode(answer["predictions"][0]["image"]["b64"])], by_v1[:1])


async def test_kserves_rest_client_speaks_v2(
    server: Server, rest: InferenceRESTClient, by_v1: list[bytes]
) -> None:
    assert await rest.is_server_ready(server.url)
    assert await rest.is_model_ready(server.url, server.model)
    request = request_of(
        server, tensor("prompt", list(PROMPTS), "BYTES"), tensor("seed", [0, 1], "INT64"), **FIELDS
    )
    response = await rest.infer(server.url, request, model_name=server.model)
    assert seeds_of(response) == [0, 1]
    assert same(pictures_of(response), by_v1)
    assert response.id


async def test_kserves_grpc_client_gets_the_same_pictures(
    server: Server, rpc: InferenceGRPCClient, by_v1: list[bytes]
) -> None:
    assert await rpc.is_server_ready()
    assert await rpc.is_model_ready(server.model)
    request = request_of(
        server, tensor("prompt", list(PROMPTS), "BYTES"), tensor("seed", [0, 1], "INT64"), **FIELDS
    )
    response = await rpc.infer(request)
    assert seeds_of(response) == [0, 1]
    assert same(pictures_of(response), by_v1)


def triton_inputs(kind: Any, columns: Columns, **form: bool) -> list[Any]:
    """The columns as tensors of Triton's HTTP or gRPC client."""
    inputs = []
    for name, (datatype, values) in columns.items():
        dtype = {"BYTES": np.object_, "INT64": np.int64, "FP32": np.float32}[datatype]
        made = kind.InferInput(name, [len(values)], datatype)
        made.set_data_from_numpy(np.array(values, dtype=dtype), **form)
        inputs.append(made)
    return inputs


COLUMNS: Columns = {
    "prompt": ("BYTES", [prompt.encode() for prompt in PROMPTS]),
    "seed": ("INT64", [0, 1]),
    "num_inference_steps": ("INT64", [3]),
    "width": ("INT64", [64]),
    "height": ("INT64", [48]),
}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_tritons_http_client_sends_and_gets_text_and_binary_tensors(
    server: Server,
    triton: triton_http.InferenceServerClient,
    by_v1: list[bytes],
    binary_in: bool,
    binary_out: bool,
) -> None:
    assert triton.is_model_ready(server.model)
    inputs = triton_inputs(triton_http, COLUMNS, binary_data=binary_in)
    outputs = [
        triton_http.InferRequestedOutput(name, binary_data=binary_out) for name in ("image", "seed")
    ]
    response = triton.infer(server.model, inputs, outputs=outputs, request_id="mine")
    assert response.get_response()["id"] == "mine"
    assert response.as_numpy("seed").tolist() == [0, 1]
    drawn = response.as_numpy("image").tolist()
    assert same(drawn if binary_out else [base64.b64decode(each) for each in drawn], by_v1)


def test_tritons_grpc_client_gets_the_same_pictures(
    server: Server, triton_rpc: triton_grpc.InferenceServerClient, by_v1: list[bytes]
) -> None:
    assert triton_rpc.is_model_ready(server.model)
    response = triton_rpc.infer(server.model, triton_inputs(triton_grpc, COLUMNS))
    assert response.as_numpy("seed").tolist() == [0, 1]
    assert same(response.as_numpy("image").tolist(), by_v1)


def test_the_model_configuration_has_tritons_shape_and_the_metadatas_tensors(
    server: Server, triton: triton_http.InferenceServerClient
) -> None:
    told, metadata = triton.get_model_config(server.model), triton.get_model_metadata(server.model)
    assert (told["name"], told["max_batch_size"]) == (server.model, 0)
    assert told["platform"] == told["backend"] == metadata["platform"]
    types = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64"}
    for side in ("input", "output"):
        tensors = [(each["name"], each["data_type"], each["dims"]) for each in told[side]]
        described = metadata[f"{side}s"]
        assert tensors == [
            (each["name"], types[each["datatype"]], each["shape"]) for each in described
        ]
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        triton.get_model_config("other")


def test_metadata_tells_tensors_arguments_and_the_memory_plan(
    server: Server, triton: triton_http.InferenceServerClient
) -> None:
    told = triton.get_model_metadata(server.model)
    assert {each["name"]: each["datatype"] for each in told["outputs"]} == {
        "image": "BYTES",
        "seed": "INT64",
    }
    assert told["inputs"][0] == {"name": "prompt", "datatype": "BYTES", "shape": [-1]}
    assert told["properties"]["pipeline"] == "StableDiffusionPipeline"
    assert "negative_prompt" in told["properties"]["arguments"]
    assert told["properties"]["memory_plan"]["device"] == "cpu"
    assert told["properties"]["default_guidance"] == 7.5
    assert {"DDIMScheduler", "EulerDiscreteScheduler"} <= set(told["properties"]["schedulers"])
    assert told["properties"]["limits"]["max_steps"] == 150


def test_a_binary_tensor_brings_the_picture_to_start_from(
    server: Server, triton: triton_http.InferenceServerClient
) -> None:
    columns = {"prompt": ("BYTES", [b"a cat"]), "seed": ("INT64", [1]), "strength": ("FP32", [0.5])}
    columns |= {"num_inference_steps": ("INT64", [4])}
    drawn = []
    for colour in ((255, 0, 0), (0, 0, 255)):
        sent = columns | {"image": ("BYTES", [encoded(colour, (48, 32))])}
        drawn.append(
            triton.infer(server.model, triton_inputs(triton_http, sent)).as_numpy("image")[0]
        )
    assert opened(drawn[0]).size == (48, 32)
    assert drawn[0] != drawn[1]


BAD: list[tuple[Columns, str]] = [
    ({"seed": ("INT64", [1])}, "prompt"),
    ({"prompt": ("BYTES", [])}, "prompt"),
    ({"prompt": ("BYTES", [b"\xff\xfe\xfd"])}, "prompt: the tensor is not UTF-8 text"),
    ({"prompt": ("BYTES", [b"a"]), "colour": ("BYTES", [b"red"])}, "colour"),
    ({"prompt": ("BYTES", [b"a"]), "width": ("INT64", [63])}, "width: 63 is not divisible"),
    ({"prompt": ("BYTES", [b"a"]), "num_inference_steps": ("INT64", [1000])}, "MAX_STEPS"),
    ({"prompt": ("BYTES", [b"a"]), "image": ("BYTES", [b"no picture"])}, "image"),
    (
        {"prompt": ("BYTES", [b"a", b"b", b"c"]), "seed": ("INT64", [1, 2])},
        "seed: 2 elements for 3 prompts",
    ),
    ({"prompt": ("BYTES", [b"a"] * 9)}, "MAX_IMAGES_PER_REQUEST"),
]


@pytest.mark.parametrize(("columns", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_tensors_are_a_400_over_rest(
    server: Server, triton: triton_http.InferenceServerClient, columns: Columns, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        triton.infer(server.model, triton_inputs(triton_http, columns))
    assert refused.value.status() == "400"
    assert words in refused.value.message()


@pytest.mark.parametrize(("columns", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_tensors_are_invalid_arguments_over_grpc(
    server: Server, triton_rpc: triton_grpc.InferenceServerClient, columns: Columns, words: str
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        triton_rpc.infer(server.model, triton_inputs(triton_grpc, columns))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in refused.value.message()


async def test_kserves_grpc_client_is_told_the_status_too(
    server: Server, rpc: InferenceGRPCClient
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await rpc.infer(request_of(server, tensor("prompt", ["a"], "BYTES"), colour="red"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "colour" in refused.value.details()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES"}]},
        {"inputs": [{"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["a"]}]},
        {"inputs": [{"name": "prompt", "shape": [1], "datatype": "WORDS", "data": ["a"]}]},
        {"inputs": [{"name": "prompt", "shape": [1], "datatype": "INT64", "data": ["a"]}]},
        {"inputs": [{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": [5]}]},
        {"inputs": "prompt"},
        [],
    ],
    ids=str,
)
def test_a_malformed_v2_body_is_a_client_error(server: Server, body: Any) -> None:
    answer = httpx.post(f"{server.url}/v2/models/{server.model}/infer", json=body, timeout=60)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("length", ["5", "100000", "-1", "many"])
def test_a_wrong_length_of_the_binary_part_is_a_client_error(server: Server, length: str) -> None:
    tensor = b'{"name":"prompt","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":9}}'
    body = b'{"inputs":[' + tensor + b"]}"
    headers = {"Inference-Header-Content-Length": length}
    answer = httpx.post(
        f"{server.url}/v2/models/{server.model}/infer", content=body, headers=headers, timeout=60
    )
    assert answer.status_code == 400, answer.text


def test_an_output_that_is_not_made_is_named(
    server: Server, triton: triton_http.InferenceServerClient
) -> None:
    outputs = [triton_http.InferRequestedOutput("depth")]
    with pytest.raises(InferenceServerException, match="'depth' is not made here"):
        triton.infer(server.model, triton_inputs(triton_http, COLUMNS), outputs=outputs)


@pytest.mark.parametrize(
    "content", [b"\xff" * 9, b"\x05\x00\x00\x00shor", b"\x01\x00\x00\x00ab\x00\x00\x00"]
)
def test_a_binary_tensor_that_cannot_be_read_is_named(server: Server, content: bytes) -> None:
    size = len(content)
    tensor = {
        "name": "prompt",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": size},
    }
    told = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(told))}
    url = f"{server.url}/v2/models/{server.model}/infer"
    answer = httpx.post(url, content=told + content, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "prompt: the tensor cannot be read" in answer.json()["error"]
