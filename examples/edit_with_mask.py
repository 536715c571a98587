"""Repaint the right half of a picture; a mask is transparent where it is to be repainted.

drawn.png is the picture, edited.png the same with something else on the right.
"""

import base64
import io
import os
from pathlib import Path

from openai import OpenAI
from PIL import Image

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("ATELIER_KEY", "none"))

drawn = client.images.generate(model="shapes", prompt="a red circle", extra_body={"seed": 7})
picture = base64.b64decode(drawn.data[0].b64_json)
Path("drawn.png").write_bytes(picture)

width, height = Image.open(io.BytesIO(picture)).size
mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
mask.paste((0, 0, 0, 0), (width // 2, 0, width, height))
file = io.BytesIO()
mask.save(file, "PNG")

edited = client.images.edit(
    model="shapes",
    prompt="a red circle to the left of a blue square",
    image=("drawn.png", picture),
    mask=("mask.png", file.getvalue()),
)
Path("edited.png").write_bytes(base64.b64decode(edited.data[0].b64_json))
