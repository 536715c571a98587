"""Other things in the same places: drawn.png, and controlled.png by the edges of it.

The server was started with CONTROLNETS=edges=builtin/shapes/edges.
"""

import base64
import os
from pathlib import Path

from openai import OpenAI

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ATELIER_KEY", "none"))

drawn = client.images.generate(
    model="shapes",
    prompt="a white star above a white heart on a black background",
    extra_body={"seed": 7},
)
control = {"name": "edges", "image": drawn.data[0].b64_json, "preprocess": "canny"}
controlled = client.images.generate(
    model="shapes",
    prompt="a yellow star above a red heart on a blue background",
    extra_body={"seed": 8, "control": [control]},
)
for name, answer in (("drawn", drawn), ("controlled", controlled)):
    Path(f"{name}.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
