"""Triton's gRPC client in a process of its own: its messages and those of kserve have the same names, and one process takes
them only once. `python -m tests.protocols.triton_grpc HOST:PORT MODEL` reads requests from standard input and writes answers.

A request is an object of tensors by name, each a pair of datatype and values; bytes are base64 text. An answer has the
pictures as base64 text and the seeds, or the status and message of the refusal.
"""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

DTYPES = {"INT64": np.int64, "FP32": np.float32}


def infer(
    client: triton.InferenceServerClient, model: str, columns: dict[str, tuple[str, list[Any]]]
) -> dict[str, Any]:
    inputs = []
    for name, (datatype, values) in columns.items():
        made = triton.InferInput(name, [len(values)], datatype)
        if datatype == "BYTES":
            made.set_data_from_numpy(np.array([base64.b64decode(value) for value in values], dtype=np.object_))
        else:
            made.set_data_from_numpy(np.array(values, dtype=DTYPES[datatype]))
        inputs.append(made)
    try:
        response = client.infer(model, inputs)
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    pictures = [base64.b64encode(picture).decode() for picture in response.as_numpy("image").tolist()]
    return {"pictures": pictures, "seeds": response.as_numpy("seed").tolist()}


def main(address: str, model: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_model_ready(model)
    print(json.dumps([infer(client, model, columns) for columns in json.load(sys.stdin)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
