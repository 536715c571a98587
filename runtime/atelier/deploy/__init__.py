"""`atelier deploy`: an endpoint on a cluster that has KServe. Needs no GPU, no torch and no server
code.

`manifest` renders an InferenceService, `cluster` talks to the API, `diagnosis` says in words why a
start fails, `rollout` waits, `cli` is the command. The pipelines' deploy step calls
`rollout.deploy`.
"""

from atelier.deploy.manifest import DeployError, Endpoint
from atelier.deploy.rollout import deploy

__all__ = ["DeployError", "Endpoint", "deploy"]
