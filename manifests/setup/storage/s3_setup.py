"""Runs once in the cluster: credentials for the demo's S3 server as Secrets, then its buckets.

Idempotent: an existing Secret is kept, so that a second run changes neither keys nor buckets.
Nothing is printed but names. It needs `kubernetes` and `boto3`, which the Atelier image has.
"""

import base64
import json
import os
import secrets
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from kubernetes import client, config

NAMESPACE = os.environ["NAMESPACE"]
ENDPOINT = os.environ.get("S3_ENDPOINT", f"http://s3.{NAMESPACE}.svc.cluster.local:8333")
REGION = "us-east-1"
BUCKETS = {"atelier-models": "models", "atelier-pipelines": "pipelines"}
"""Data connection to bucket."""


def connection(name: str, bucket: str, keys: tuple[str, str]) -> client.V1Secret:
    """A data connection as OpenShift AI's dashboard writes them."""
    return client.V1Secret(
        metadata=client.V1ObjectMeta(
            name=name,
            labels={"opendatahub.io/dashboard": "true", "opendatahub.io/managed": "true"},
            annotations={
                "opendatahub.io/connection-type": "s3",
                "opendatahub.io/connection-type-ref": "s3",
                "opendatahub.io/connection-type-protocol": "s3",
                "openshift.io/display-name": name,
            },
        ),
        type="Opaque",
        string_data={
            "AWS_ACCESS_KEY_ID": keys[0],
            "AWS_SECRET_ACCESS_KEY": keys[1],
            "AWS_S3_ENDPOINT": ENDPOINT,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_S3_BUCKET": bucket,
        },
    )


def server_config(keys: tuple[str, str]) -> client.V1Secret:
    """What the S3 server reads: one identity with all rights."""
    identity = {
        "name": "atelier",
        "credentials": [{"accessKey": keys[0], "secretKey": keys[1]}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return client.V1Secret(
        metadata=client.V1ObjectMeta(name="s3-server"),
        string_data={
            "s3.json": json.dumps({"identities": [identity]}),
            "access_key": keys[0],
            "secret_key": keys[1],
        },
    )


def storage_config(keys: tuple[str, str]) -> client.V1Secret:
    """KServe's own form of the connections. OpenShift AI writes this Secret itself, plain KServe
    does not."""
    entries = {
        name: json.dumps(
            {
                "type": "s3",
                "access_key_id": keys[0],
                "secret_access_key": keys[1],
                "endpoint_url": ENDPOINT,
                "bucket": bucket,
                "region": REGION,
            }
        )
        for name, bucket in BUCKETS.items()
    }
    return client.V1Secret(metadata=client.V1ObjectMeta(name="storage-config"), string_data=entries)


def create(core: client.CoreV1Api, secret: client.V1Secret) -> None:
    """Create the Secret, or keep the one that is there."""
    try:
        core.create_namespaced_secret(NAMESPACE, secret)
        print(f"Secret {secret.metadata.name}: made")
    except client.ApiException as error:
        if error.status != 409:
            raise
        print(f"Secret {secret.metadata.name}: kept")


def credentials(core: client.CoreV1Api) -> tuple[str, str]:
    """Access key and secret key of the server: new random ones the first time, those in its Secret
    afterwards."""
    create(core, server_config((secrets.token_hex(10), secrets.token_urlsafe(32))))
    data = core.read_namespaced_secret("s3-server", NAMESPACE).data
    return tuple(base64.b64decode(data[key]).decode() for key in ("access_key", "secret_key"))


def make_buckets(keys: tuple[str, str], patience_s: float = 300) -> None:
    """Wait for the server and make the buckets that are missing."""
    s3 = boto3.client(
        "s3",
        REGION,
        endpoint_url=ENDPOINT,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
    )
    deadline = time.monotonic() + patience_s
    while True:
        try:
            there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
            break
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline:
                raise
            time.sleep(3)
    for bucket in BUCKETS.values():
        if bucket not in there:
            s3.create_bucket(Bucket=bucket)
        print(f"bucket {bucket}: {'kept' if bucket in there else 'made'}")


def main() -> None:
    config.load_incluster_config()
    core = client.CoreV1Api()
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    keys = credentials(core)
    for name, bucket in BUCKETS.items():
        create(core, connection(name, bucket, keys))
    if "datasciencecluster.opendatahub.io" not in groups:
        create(core, storage_config(keys))
    make_buckets(keys)


if __name__ == "__main__":
    main()
