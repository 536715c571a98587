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


TAINT = "(?:untolerated|had) taint"
"""`had taint {...}, that the pod didn't tolerate` until Kubernetes 1.24."""

REASONS = (
    Reason(
        r'persistentvolumeclaim "[^"]*" (not found|is being deleted)',
        "the volume claim that it names does not exist",
        "make the PersistentVolumeClaim that the message names, or correct its name",
    ),
    Reason(
        "exceed max volume count",
        "the node holds as many volumes as it can",
        "end pods with volumes there, or add a node",
    ),
    Reason(
        "ReadWriteOncePod|no available disk",
        "another pod holds its volume",
        "end that pod, or use a claim that may be shared (ReadWriteMany)",
    ),
    Reason(
        "storageclass.*not found",
        "the claim's storage class does not exist",
        "kubectl get storageclass shows those that do; make the claim again with one of them",
    ),
    Reason(
        "(?i)resourceclaim|cannot allocate all claims",
        "no node has the devices that its resource claim wants",
        "look at the claim and the devices: kubectl describe resourceclaim, kubectl get"
        " resourceslices",
    ),
    Reason(
        "PersistentVolume|volume|enough free storage",
        "its volume is not bound, or not where the node is",
        "look at the claim: storage class, size, access mode, zone",
    ),
    Reason(
        "pod (anti-)?affinity|pods anti-affinity|topology spread",
        "its rules about other pods leave no node",
        "look at affinity and topologySpreadConstraints, or add a node",
    ),
    Reason(
        r"Insufficient nvidia\.com/gpu",
        "no node has the GPUs free that it asks for",
        "wait for one, scale the GPU nodes, or ask fewer",
    ),
    Reason(
        r"Insufficient nvidia\.com/mig",
        "no node has the GPU slice free that it asks for",
        "wait for one, or ask for a slice that the nodes have: oc describe node",
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
        "Insufficient ephemeral-storage",
        "no node has the disk free that it asks for",
        "lower requests.ephemeral-storage, or keep weights on a volume",
    ),
    Reason(
        "Insufficient",
        "no node has enough free of what the message names",
        "lower that request or add a node",
    ),
    Reason(
        "Too many pods",
        "the node runs as many pods as it may",
        "end pods there, or add a node",
    ),
    Reason(
        "were unschedulable",
        "a node is cordoned, for maintenance perhaps",
        "oc get nodes shows which; oc adm uncordon NODE once it may take pods again",
    ),
    Reason(
        rf"{TAINT} \{{node\.(kubernetes\.io|cloudprovider\.kubernetes\.io)/",
        "a node is in trouble or not ready yet",
        "oc describe node says what it lacks: a toleration would not help",
    ),
    Reason(
        rf"{TAINT} (?!\{{node-role\.kubernetes\.io)",
        "the nodes that fit refuse pods without a toleration",
        "add the node's taint to tolerations",
    ),
    # Kubernetes 1.35 and newer do not name it.
    Reason(
        r"taint\(s\)|taints that the pod didn't tolerate",
        "nodes refuse pods without a toleration, the control plane's among them perhaps",
        "oc get nodes -o custom-columns=NAME:.metadata.name,TAINTS:.spec.taints shows them: add a"
        " GPU node's to tolerations, and no control plane's",
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
        TAINT,
        "the control plane's nodes take no such pods",
        "add a worker node that fits",
    ),
    Reason(
        "no nodes available|0/0 nodes",
        "the cluster has no node",
        "add a worker node",
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
    parts = re.split(r",\s*(?=\d+ )|:\s+(?=\d+ )|\.\s+(?=\d+ )", text)
    nodes: dict[int, int] = {}
    for part in parts:
        rank = next((n for n, each in enumerate(REASONS) if re.search(each.part, part)), None)
        if rank is not None:
            count = re.match(r"(\d+) ", part)
            nodes[rank] = nodes.get(rank, 0) + (int(count[1]) if count else 0)
    if not nodes:
        return Unfit(message, "see what the scheduler misses in the message")
    found = {
        rank: (
            REASONS[rank].cause + (f" on {number} node(s)" if number else ""),
            REASONS[rank].remedy,
        )
        for rank, number in nodes.items()
    }
    causes, remedies = zip(*(found[rank] for rank in sorted(found)), strict=True)
    if len(causes) == 1:
        return Unfit(f"{causes[0]} ({message})", remedies[0])
    nearest = f"nearest to fitting: {causes[0]}; also: {'; '.join(causes[1:])} ({message})"
    return Unfit(nearest, f"{remedies[0]}; or: {'; or: '.join(remedies[1:])}")
