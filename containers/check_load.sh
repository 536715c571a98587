#!/usr/bin/env bash
# check_load FOLDER SECONDS: starts the server on a checkpoint, on the CPU and without warm-up, and stops it when the
# model is loaded. Fails if it does not load: weights that do not load must not become an image.
set -euo pipefail
folder=$1 seconds=$2 port=${CHECK_PORT:-18080}

MODEL_ID=$folder DEVICE=cpu COMPILE=off WARMUP=off HF_HUB_OFFLINE=1 \
  atelier serve --model_name=check "--http_port=$port" --enable_grpc=false &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT

ready="import urllib.request as r; r.urlopen('http://127.0.0.1:$port/v2/models/check/ready', timeout=5)"
for ((waited = 0; waited < seconds; waited++)); do
  if python3 -c "$ready" 2>/dev/null; then
    echo "$folder loads"
    exit 0
  fi
  if ! kill -0 "$server" 2>/dev/null; then
    echo "$folder does not load, see above" >&2
    exit 1
  fi
  sleep 1
done
echo "$folder did not load within $seconds s" >&2
exit 1
