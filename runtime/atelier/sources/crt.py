"""The AWS Common Runtime's S3 client, for large objects, where the `awscrt` package is installed
(extra `crt`).

It fetches in C what Python threads fetch in Python, with parts and retries of its own, and from any
endpoint. It cannot resume: an object that was begun in ranges is finished in ranges. boto3's own
switch for it knows AWS alone, so the transfer manager beneath is used.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORTH_BYTES = 64 * 2**20
"""Objects below this size are no faster."""

PART_BYTES = 16 * 2**20

Whole = Callable[[str, Path], None]
"""Fetches the object of a key into a file."""


def whole_objects(client: Any, bucket: str, verify: str) -> Whole | None:
    """A way to fetch whole objects of `bucket` with the endpoint, region and credentials of a boto3
    client.

    Returns None where `awscrt` is not installed, or where there are no credentials.
    """
    if not importlib.util.find_spec("awscrt"):
        return None
    import botocore.session
    from botocore.config import Config
    from s3transfer import crt

    credentials = client._get_credentials()
    if credentials is None:
        return None
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    config = Config(s3=client.meta.config.s3, signature_version="s3v4")
    serializer = crt.BotocoreCRTRequestSerializer(
        botocore.session.Session(),
        {"region_name": region, "endpoint_url": endpoint, "config": config},
    )
    s3 = crt.create_s3_crt_client(
        region,
        crt_credentials_provider=crt.BotocoreCRTCredentialsWrapper(
            credentials
        ).to_crt_credentials_provider(),
        part_size=PART_BYTES,
        use_ssl=endpoint.startswith("https"),
        verify=verify or None,
    )
    manager = crt.CRTTransferManager(s3, serializer)

    def fetch(key: str, path: Path) -> None:
        manager.download(bucket, key, str(path), extra_args={}).result()

    return fetch
