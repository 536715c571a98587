"""A picture by KServe v2 over gRPC, with Triton's client: triton_client.png."""

import os
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(os.environ.get("ATELIER_GRPC", "localhost:8081"))
prompt = triton.InferInput("prompt", [1], "BYTES")
prompt.set_data_from_numpy(np.array([b"a yellow star"], dtype=object))
answer = client.infer("shapes", [prompt], parameters={"seed": 7})
Path("triton_client.png").write_bytes(answer.as_numpy("image")[0])
print("seed", answer.as_numpy("seed")[0])
