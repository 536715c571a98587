"""A picture by OpenAI's client, streamed with two previews: openai_picture.png at the end."""

import base64
import os
from pathlib import Path

from openai import OpenAI

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ATELIER_KEY", "none"))

stream = client.images.generate(
    model="shapes",
    prompt="a small green star above a large purple square",
    size="128x128",
    stream=True,
    partial_images=2,
)
for event in stream:
    print(event.type)
    if event.type == "image_generation.completed":
        Path("openai_picture.png").write_bytes(base64.b64decode(event.b64_json))
