#!/bin/sh
# A picture that was sent, made twice as large by a network: small.png and large.png. The server was
# started with UPSCALERS=builtin/shapes/x2. With "upscale": 2 in the first request, it is drawn so.
set -eu
url=${ATELIER_URL:-http://localhost:8080}

picture() { # the picture of an answer
  python3 -c 'import json, sys; print(json.load(sys.stdin)["data"][0]["b64_json"])' | base64 -d
}

curl --silent --fail-with-body "$url/v1/images/generations" \
  --header 'Content-Type: application/json' \
  --data '{"prompt": "a red star on a blue background", "seed": 7}' | picture >small.png
curl --silent --fail-with-body "$url/v1/images/upscale" \
  --form image=@small.png --form upscale=2 | picture >large.png
echo large.png
