"""Two prompts by KServe v2, with KServe's own client: kserve_0.png and kserve_1.png."""

import asyncio
import base64
import os
from pathlib import Path

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

PROMPTS = ["a yellow star", "a large blue square"]


async def ask() -> list[bytes]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=120))
    prompt = InferInput("prompt", [len(PROMPTS)], "BYTES")
    prompt.set_data_from_numpy(np.array([p.encode() for p in PROMPTS], dtype=object))
    request = InferRequest("shapes", [prompt], parameters={"guidance_scale": 3.0})
    url = os.environ.get("ATELIER_URL", "http://localhost:8080")
    answer = await client.infer(url, request, model_name="shapes")
    await client.close()
    [pictures] = [output for output in answer.outputs if output.name == "image"]
    return [base64.b64decode(picture) for picture in pictures.as_numpy()]


for index, picture in enumerate(asyncio.run(ask())):
    Path(f"kserve_{index}.png").write_bytes(picture)
