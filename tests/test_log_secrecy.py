"""What people ask and what they sign with stands in no log, at the chattiest level either."""

from __future__ import annotations

import httpx

from tests.conftest import StartServer

PROMPT, KEY, WRONG = "an unrepeatable walrus", "key-nobody-may-read", "key-that-is-wrong"


def test_no_prompt_and_no_key_is_logged_at_any_level(start_server: StartServer) -> None:
    with start_server(
        model_id="builtin/shapes", log_level="debug", log_format="json", api_keys=KEY
    ) as server:
        url = f"{server.url}/v1/models/{server.model}:predict"
        fields = {"prompt": PROMPT, "num_inference_steps": 1}
        asked = [(KEY, fields, 200), (WRONG, fields, 401), (KEY, {**fields, "width": "x"}, 400)]
        for key, instance, code in asked:
            headers = {"Authorization": f"Bearer {key}"}
            body = {"instances": [instance]}
            assert httpx.post(url, json=body, headers=headers, timeout=60).status_code == code
        log = server.log.read_text()
    assert '"outcome": "ok"' in log or '"outcome":"ok"' in log
    for secret in (PROMPT, "unrepeatable", KEY, WRONG):
        assert secret not in log, secret
