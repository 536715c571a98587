"""`atelier deploy render | apply | status | logs | delete`: the command line over the other modules
of this package."""

from __future__ import annotations

from typing import Annotated

import typer

from atelier.deploy.manifest import GPUS, DeployError, Endpoint, render, to_yaml

app = typer.Typer(
    no_args_is_help=True, help="Make, follow and remove endpoints on a cluster with KServe."
)

Name = Annotated[str, typer.Argument(help="Name of the endpoint.")]
Source = Annotated[
    str,
    typer.Argument(
        help="Hub id, builtin/shapes, s3://bucket/folder, pvc://claim/folder or oci://image."
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", help="Empty: the one of the current context.")
]
Context = Annotated[str, typer.Option(help="Context of the kubeconfig.")]
GpuOption = Annotated[str, typer.Option("--gpu", help=f"cpu, {', '.join(GPUS)}.")]
Count = Annotated[int, typer.Option("--gpus", help="GPUs of one pod.")]
Profile = Annotated[str, typer.Option(help="PROFILE of the server.")]
Connection = Annotated[
    str, typer.Option(help="Data connection (Secret) for s3:// sources and variables.")
]
Runtime = Annotated[str, typer.Option(help="ServingRuntime; empty: atelier, or atelier-cpu.")]
Env = Annotated[
    list[str], typer.Option("--env", "-e", help="NAME=VALUE for the server; repeatable.")
]
Expose = Annotated[bool, typer.Option("--expose", help="Make a Route (OpenShift AI).")]
Open = Annotated[
    bool, typer.Option("--open", help="Let anybody call it: --expose without --token.")
]
HardwareProfile = Annotated[str, typer.Option(help="Hardware profile: name or namespace/name.")]
Queue = Annotated[str, typer.Option(help="LocalQueue of Kueue.")]
Token = Annotated[bool, typer.Option("--token", help="Ask callers for a token (OpenShift AI).")]
MaxReplicas = Annotated[int, typer.Option(help="Most replicas.")]


def _endpoint(
    name: str,
    source: str,
    gpu: str,
    gpus: int,
    profile: str,
    connection: str,
    runtime: str,
    env: list[str],
    namespace: str,
    expose: bool,
    token: bool,
    max_replicas: int,
    open_: bool,
    hardware_profile: str,
    queue: str,
) -> Endpoint:
    return Endpoint(
        name=name,
        source=source,
        gpu=gpu,
        gpus=gpus,
        profile=profile,
        connection=connection,
        runtime=runtime,
        env=dict(_pairs(env)),
        namespace=namespace,
        expose=expose,
        token=token,
        max_replicas=max_replicas,
        open=open_,
        hardware_profile=hardware_profile,
        queue=queue,
    )


def _pairs(env: list[str]) -> list[tuple[str, str]]:
    """Name and value of each --env."""
    pairs = [pair.partition("=") for pair in env]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise DeployError(f"--env {wrong[0]}: write NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


@app.command("render")
def render_command(
    name: Name,
    source: Source,
    gpu: GpuOption = "cpu",
    gpus: Count = 1,
    profile: Profile = "",
    connection: Connection = "",
    runtime: Runtime = "",
    env: Env = [],  # noqa: B006
    namespace: Namespace = "",
    expose: Expose = False,
    token: Token = False,
    max_replicas: MaxReplicas = 1,
    open_: Open = False,
    hardware_profile: HardwareProfile = "",
    queue: Queue = "",
) -> None:
    """Print the InferenceService that `apply` would apply."""
    endpoint = _endpoint(
        name,
        source,
        gpu,
        gpus,
        profile,
        connection,
        runtime,
        env,
        namespace,
        expose,
        token,
        max_replicas,
        open_,
        hardware_profile,
        queue,
    )
    typer.echo(to_yaml(render(endpoint)), nl=False)


@app.command()
def apply(
    name: Name,
    source: Source,
    gpu: GpuOption = "cpu",
    gpus: Count = 1,
    profile: Profile = "",
    connection: Connection = "",
    runtime: Runtime = "",
    env: Env = [],  # noqa: B006
    namespace: Namespace = "",
    expose: Expose = False,
    token: Token = False,
    max_replicas: MaxReplicas = 1,
    open_: Open = False,
    hardware_profile: HardwareProfile = "",
    queue: Queue = "",
    wait: Annotated[
        bool, typer.Option(help="Follow it until it is ready, or say why it is not.")
    ] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 900,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Own fields that somebody else set.")
    ] = False,
    context: Context = "",
) -> None:
    """Make or change an endpoint and wait until it is ready."""
    from atelier.deploy.rollout import deploy

    endpoint = _endpoint(
        name,
        source,
        gpu,
        gpus,
        profile,
        connection,
        runtime,
        env,
        namespace,
        expose,
        token,
        max_replicas,
        open_,
        hardware_profile,
        queue,
    )
    wait_s = timeout if wait else 0
    deploy(endpoint, wait_s=wait_s, say=typer.echo, context=context, take_over=take_over)


@app.command()
def canary(
    name: Name,
    percent: Annotated[int, typer.Option(help="Share of the traffic; 0 ends the canary.")],
    image: Annotated[str, typer.Option(help="Another image for it.")] = "",
    env: Env = [],  # noqa: B006
    namespace: Namespace = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 900,
    context: Context = "",
) -> None:
    """Give a changed copy of an endpoint a share of its traffic (KServe 0.20 and newer)."""
    from atelier.deploy.canary import set_canary
    from atelier.deploy.cluster import Cluster

    changes = dict(_pairs(env))
    set_canary(Cluster(namespace, context), name, percent, image, changes, timeout, typer.echo)


@app.command()
def status(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Say whether an endpoint is ready, and why not; exit code 1 if it is not."""
    from atelier.deploy.cluster import Cluster
    from atelier.deploy.rollout import status as report

    ready, text = report(Cluster(namespace, context), name)
    typer.echo(text)
    raise typer.Exit(0 if ready else 1)


@app.command()
def logs(
    name: Name,
    namespace: Namespace = "",
    container: Annotated[
        str, typer.Option(help="Such as storage-initializer.")
    ] = "kserve-container",
    previous: Annotated[
        bool, typer.Option("--previous", help="The run before the last restart.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the container ends.")
    ] = False,
    tail: Annotated[int | None, typer.Option(help="Last lines only.")] = None,
    context: Context = "",
) -> None:
    """Print the log of an endpoint's newest pod."""
    from atelier.deploy.cluster import Cluster

    cluster = Cluster(namespace, context)
    pods = cluster.pods(name)
    if not pods:
        raise DeployError(
            f"{name} has no pod in {cluster.namespace}: atelier deploy status {name} says why"
        )
    pod = pods[0]["metadata"]["name"]
    if follow:
        for line in cluster.follow(pod, container):
            typer.echo(line)
    else:
        typer.echo(cluster.logs(pod, container, previous=previous, tail=tail), nl=False)


@app.command()
def delete(name: Name, namespace: Namespace = "", context: Context = "") -> None:
    """Remove an endpoint; nothing happens if there is none."""
    from atelier.deploy.cluster import Cluster

    cluster = Cluster(namespace, context)
    removed = cluster.delete(name)
    typer.echo(
        f"InferenceService {name} {'deleted' if removed else 'was not there'} in"
        f" {cluster.namespace}"
    )
