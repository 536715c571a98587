"""Settings that `atelier mcp` reads and no server of a model does."""

from __future__ import annotations

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from atelier.settings.groups import ASSISTANTS
from atelier.settings.values import ByteCount


class AssistantSettings(BaseSettings):
    """The part of `Settings` that stands in the group Assistants."""

    mcp_endpoint: str = ASSISTANTS(
        "http://localhost:8080",
        "What pictures are drawn with: a server of ours, or an OpenAI images API.",
        (),
    )
    mcp_endpoint_key: SecretStr | None = ASSISTANTS(
        None, "API key that is sent to MCP_ENDPOINT.", ()
    )
    mcp_store: str = ASSISTANTS(
        "",
        (
            "Where pictures are kept for RESULT_SECONDS: a folder or s3://bucket/prefix; empty: a"
            " folder in CACHE_DIR."
        ),
        (),
    )
    mcp_inline_bytes: ByteCount = ASSISTANTS(
        512 * 2**10,
        "Bytes of pictures inside one answer of a tool; larger ones are shown reduced.",
        (),
        ge=4096,
    )
