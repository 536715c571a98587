#!/bin/sh
# A picture by KServe's v1 protocol, with nothing but curl and python3 for the JSON.
set -eu
url=${ATELIER_URL:-http://localhost:8080}

curl --silent --fail-with-body "$url/v1/models/shapes:predict" \
  --header 'Content-Type: application/json' \
  --data '{"instances": [{"prompt": "a red circle on a blue background", "seed": 7}]}' |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["predictions"][0]["image"]["b64"])' |
  base64 -d >curl.png
echo curl.png
