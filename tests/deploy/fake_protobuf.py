"""So much of protobuf that kubectl's question about rights can be read: it asks in no other way."""

from __future__ import annotations

from typing import Any

MAGIC = b"k8s\x00"
ATTRIBUTES = {1: "namespace", 2: "verb", 3: "group", 4: "version", 5: "resource", 7: "name"}


def fields(data: bytes) -> dict[int, bytes]:
    """The length-delimited fields of a message by number; the last of each."""
    found, at = {}, 0
    while at < len(data):
        tag, at = _number(data, at)
        length, at = _number(data, at)
        if tag & 7 == 2:
            found[tag >> 3] = data[at : at + length]
            at += length
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def access_review(data: bytes) -> dict[str, Any]:
    """A SelfSubjectAccessReview as JSON has it."""
    spec = fields(fields(data.removeprefix(MAGIC))[2])[2]
    asked = {
        ATTRIBUTES[n]: v.decode() for n, v in fields(fields(spec)[1]).items() if n in ATTRIBUTES
    }
    return {
        "kind": "SelfSubjectAccessReview",
        "apiVersion": "authorization.k8s.io/v1",
        "spec": {"resourceAttributes": asked},
    }
