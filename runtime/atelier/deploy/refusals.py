"""The platform's words for what it refuses and for what goes wrong on a node, with remedies."""

from __future__ import annotations

from collections.abc import Mapping

FAILED_CREATE = {
    "exceeded quota": "ask fewer, or have the project's ResourceQuota raised: oc describe quota",
    "failed quota": "the project's quota wants requests and limits that the pod does not name",
    "status unknown for quota": "the quota is new and not counted yet: wait; if it stays so, the"
    " cluster's quota controller does not run",
    "insufficient quota": "the project has no quota for this: ask its administrator for one",
    "usage per": "stay within the project's LimitRange: oc describe limitrange",
    "limit to request ratio": "set requests nearer to limits: oc describe limitrange",
    "violates PodSecurity": "set the securityContext that the message names; do not set runAsUser",
    "security context constraint": "leave runAsUser and privileges out: restricted-v2 sets them",
    "service account": "make the ServiceAccount that the message names: kubectl apply -k"
    " manifests/base",
    "serviceaccount": "make the ServiceAccount that the message names: kubectl apply -k"
    " manifests/base",
    "failed calling webhook": "a webhook of the cluster is down: ask its administrator; the message"
    " names the service",
    "denied the request": "a policy of the cluster refuses it: the message says what it wants",
    "denied request": "a policy of the cluster refuses it: the message says what it wants",
    "PriorityClass": "take a priority class that is there: kubectl get priorityclass",
    "RuntimeClass": "take a runtime class that is there: kubectl get runtimeclass",
    "is being terminated": "the project is being deleted: wait until it is gone, make it again",
    "is invalid": "correct the field that the message names; a LimitRange may have filled it in",
}
"""Part of the message of a pod that was not made, and what to do."""

PASSING = ("status unknown for quota", "failed calling webhook")
"""What ends by itself, or by somebody else's hand."""

OTHERWISE = "a quota or a security policy refuses the pod: the message names it"

WAITING = {
    "CreateContainerConfigError": "make the Secret, ConfigMap or volume that the message names",
    "CreateContainerError": "make the Secret, ConfigMap or volume that the message names",
    "RunContainerError": "the node cannot start the command: the message says why",
    "PostStartHookError": "correct the container's postStart hook, which failed",
}
"""Why a container that has its image is not made, and what to do."""

NO_IMAGE = (
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
)
NO_SUCH_IMAGE = (
    *("not found", "unauthorized", "denied", "manifest unknown", "name unknown"),
    *("invalid reference", "no basic auth", "couldn't parse image", "not present with pull policy"),
    *("InvalidImageName", "ErrImageNeverPull", "403 Forbidden"),
)
"""Words of a pull error that waiting does not mend."""

REFUSED_BY_NODE = {
    "UnexpectedAdmissionError": (
        "delete the pod; if it happens again, look at the node's GPU device plugin"
    ),
    "OutOf": "another pod was faster; its ReplicaSet makes a new one: delete this one",
    "NodeAffinity": "the node's labels changed; its ReplicaSet makes a new one: delete this one",
    "TopologyAffinityError": "the node cannot give GPU and CPU side by side: ask whole cores,"
    " requests equal to limits",
    "NodeShutdown": "the node was shut down; its ReplicaSet makes a new one: delete this one",
    "Terminated": "the node was shut down; its ReplicaSet makes a new one: delete this one",
    "Preempting": "a pod of higher priority took the place: set a priority class",
}
"""Beginning of the reason of a pod that a node ended, and what to do."""

WARNINGS = {
    "FailedMount": ("a volume cannot be mounted", "does the claim, Secret or ConfigMap exist?"),
    "FailedMapVolume": ("a volume cannot be mounted", "look at the claim: kubectl describe pvc"),
    "FailedAttachVolume": (
        "a volume cannot be attached to the node",
        "another node may still hold it (ReadWriteOnce): end the pod there, or use ReadWriteMany",
    ),
    "FailedCreatePodSandBox": (
        "the node cannot make the pod's sandbox",
        "the node's network or container runtime is in trouble: tell the cluster's administrator,"
        " delete the pod to try another node",
    ),
    "NetworkNotReady": (
        "the node has no network",
        "the node's network plugin is in trouble: tell the cluster's administrator",
    ),
    "FailedPrepareDynamicResources": (
        "the node cannot prepare the devices of its resource claim",
        "look at the node's DRA driver, and at kubectl describe resourceclaim",
    ),
    "UnexpectedAdmissionError": (
        "the node refused it",
        "delete the pod; if it happens again, look at the node's GPU device plugin",
    ),
}
"""Reason of a warning, what it means, what to do."""

BEFORE_THE_START = (
    *("FailedMount", "FailedMapVolume", "FailedAttachVolume", "FailedCreatePodSandBox"),
    *("NetworkNotReady", "FailedPrepareDynamicResources"),
)
"""Warnings that are over once a container of the pod runs, though they are kept for an hour."""


def first(table: Mapping[str, str], message: str) -> str:
    """The remedy of the first part that is in the message."""
    return next((remedy for part, remedy in table.items() if part in message), OTHERWISE)
