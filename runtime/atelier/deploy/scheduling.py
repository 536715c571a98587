"""What the scheduler's message means: its reasons weighed by how near a node is to fitting. Pure.

The scheduler asks every node in a fixed order: cordoned, taints, affinity, then resources. A node
that lacks only resources has passed all the rest and is the nearest; one whose labels do not match
is the farthest. A node that is cordoned or tainted was not asked any further.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Reason(NamedTuple):
    part: str
    """Pattern of the scheduler's words."""
    cause: str
    remedy: str


REASONS = (
    Reason(
        r'persistentvolumeclaim "[^"]*" not found',
        "the volume claim that it names does not exist",
        "make the PersistentVolumeClaim that the message names, or correct its name",
    ),
    Reason(
        "PersistentVolumeClaim|volume",
        "its volume is not bound, or not where the node is",
        "look at the claim: storage class, size, access mode, zone",
    ),
    Reason(
        r"Insufficient nvidia\.com/gpu",
        "no node has the GPUs free that it asks for",
        "wait for one, scale the GPU nodes, or ask fewer",
    ),
    Reason(
        "Insufficient memory",
        "no node has the memory free that it asks for",
        "lower requests.memory or add a larger node",
    ),
    Reason(
        "Insufficient cpu",
        "no node has the CPU free that it asks for",
        "lower requests.cpu or add a node",
    ),
    Reason(
        "Insufficient",
        "no node has enough free of what the message names",
        "lower that request or add a node",
    ),
    Reason(
        "were unschedulable",
        "a node is cordoned, for maintenance perhaps",
        "oc get nodes shows which; oc adm uncordon NODE once it may take pods again",
    ),
    Reason(
        r"untolerated taint (?!\{node-role\.kubernetes\.io)",
        "the nodes that fit refuse pods without a toleration",
        "add the node's taint to tolerations",
    ),
    Reason(
        "node affinity",
        "no node has the GPU product it asks for",
        "compare nvidia.com/gpu.product of the nodes with the overlay's nodeSelector",
    ),
    Reason(
        "node selector",
        "no node has the labels it asks for",
        "compare the node labels with the overlay's nodeSelector",
    ),
    Reason(
        "untolerated taint",
        "the control plane's nodes take no such pods",
        "add a worker node that fits",
    ),
)
"""The nearest to fitting first."""


class Unfit(NamedTuple):
    """Why no node takes a pod."""

    cause: str
    remedy: str


def explain(message: str) -> Unfit:
    """The nearest reason first, then the others with the number of their nodes."""
    text = message.partition(" preemption:")[0]
    parts = re.split(r",\s*(?=\d+ )|:\s+(?=\d+ )", text)
    found: dict[int, tuple[str, str]] = {}
    for part in parts:
        for rank, reason in enumerate(REASONS):
            if re.search(reason.part, part):
                count = re.match(r"(\d+) ", part)
                nodes = f" on {count[1]} node(s)" if count else ""
                found.setdefault(rank, (reason.cause + nodes, reason.remedy))
                break
    if not found:
        return Unfit(message, "see what the scheduler misses in the message")
    causes, remedies = zip(*(found[rank] for rank in sorted(found)), strict=True)
    if len(causes) == 1:
        return Unfit(f"{causes[0]} ({message})", remedies[0])
    nearest = f"nearest to fitting: {causes[0]}; also: {'; '.join(causes[1:])} ({message})"
    return Unfit(nearest, f"{remedies[0]}; or: {'; or: '.join(remedies[1:])}")
