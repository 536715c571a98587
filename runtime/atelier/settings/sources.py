"""Settings of where models come from, and where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from atelier.settings.groups import OWN, SOURCES
from atelier.settings.values import Folder


class SourceSettings(BaseSettings):
    """The part of `Settings` for downloads."""

    cache_dir: Folder = SOURCES(
        Path("~/.cache/atelier"), "Downloads and compile caches; a writable volume in a cluster."
    )
    weights_cache: Literal["disk", "off"] = SOURCES(
        "disk",
        "off: the weights of an s3:// MODEL_ID go to memory at every start, never to CACHE_DIR.",
        OWN,
    )
    hf_token: SecretStr | None = SOURCES(None, "Token for the Hub.")
    hf_hub_offline: bool = SOURCES(False, "Never ask the Hub; use what is already in the cache.")
    aws_access_key_id: SecretStr | None = SOURCES(None, "S3 key id, as in a data connection.")
    aws_secret_access_key: SecretStr | None = SOURCES(None, "S3 secret, as in a data connection.")
    aws_session_token: SecretStr | None = SOURCES(
        None, "S3 session token for temporary credentials."
    )
    aws_s3_endpoint: str = SOURCES("", "S3 endpoint URL; empty: AWS.")
    aws_s3_bucket: str = SOURCES("", "Bucket of addresses such as s3:///prefix.")
    aws_default_region: str = SOURCES("us-east-1", "S3 region.")
    aws_ca_bundle: str = SOURCES("", "CA file for an S3 endpoint with a private certificate.")
