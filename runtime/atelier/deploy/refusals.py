"""The platform's words for what it refuses and for what goes wrong on a node, with remedies."""

from __future__ import annotations

from collections.abc import Mapping

FAILED_CREATE = {
    "exceeded quota": "ask fewer, or have the project's ResourceQuota raised: oc describe quota",
    "failed quota": "the project's quota wants requests and limits that the pod does not name",
    "usage per Container": "stay within the project's LimitRange: oc describe limitrange",
    "usage per Pod": "stay within the project's LimitRange: oc describe limitrange",
    "violates PodSecurity": "set the securityContext that the message names; do not set runAsUser",
    "security context constraint": "leave runAsUser and privileges out: restricted-v2 sets them",
    "service account": "make the ServiceAccount that the message names: kubectl apply -k"
    " manifests/base",
    "serviceaccount": "make the ServiceAccount that the message names: kubectl apply -k"
    " manifests/base",
    "failed calling webhook": "a webhook of the cluster is down: ask its administrator; the message"
    " names the service",
}
"""Part of the message of a pod that was not made, and what to do."""

OTHERWISE = "a quota or a security policy refuses the pod: the message names it"

WARNINGS = {
    "FailedMount": ("a volume cannot be mounted", "does the claim, Secret or ConfigMap exist?"),
    "FailedAttachVolume": (
        "a volume cannot be attached to the node",
        "another node may still hold it (ReadWriteOnce): end the pod there, or use ReadWriteMany",
    ),
    "FailedCreatePodSandBox": (
        "the node cannot make the pod's sandbox",
        "the node's network or container runtime is in trouble: tell the cluster's administrator,"
        " delete the pod to try another node",
    ),
    "UnexpectedAdmissionError": (
        "the node refused it",
        "delete the pod; if it happens again, look at the node's GPU device plugin",
    ),
}
"""Reason of a warning, what it means, what to do."""


def first(table: Mapping[str, str], message: str) -> str:
    """The remedy of the first part that is in the message."""
    return next((remedy for part, remedy in table.items() if part in message), OTHERWISE)
