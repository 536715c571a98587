"""One seed without and with a LoRA adapter: plain.png and adapted.png.

The server was started with LORA_PATHS=...; give the adapter's name, the last part of its address.
Usage: python lora.py NAME
"""

import base64
import os
import sys
from pathlib import Path

import httpx

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
wish = {"prompt": "a red circle", "seed": 7}
instances = [wish, wish | {"lora": {sys.argv[1]: 1.0}}]
answer = httpx.post(f"{url}/v1/models/shapes:predict", json={"instances": instances}, timeout=300)
answer.raise_for_status()
for name, made in zip(("plain", "adapted"), answer.json()["predictions"], strict=True):
    Path(f"{name}.png").write_bytes(base64.b64decode(made["image"]["b64"]))
