"""Work that outlives a route's time-out: ask, look in now and then, fetch. job.png at the end."""

import base64
import os
import time
from pathlib import Path

import httpx

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
client = httpx.Client(base_url=url, timeout=60)

asked = client.post(
    "/v1/models/shapes:predict",
    headers={"Prefer": "respond-async"},
    json={"instances": [{"prompt": "a green square", "num_inference_steps": 30}]},
)
asked.raise_for_status()
place = asked.headers["Location"]
while (job := client.get(place).raise_for_status().json())["status"] in ("queued", "running"):
    print(job["status"], job["step"], "of", job["total_steps"])
    time.sleep(0.2)
[made] = job["result"]["predictions"]
Path("job.png").write_bytes(base64.b64decode(made["image"]["b64"]))
