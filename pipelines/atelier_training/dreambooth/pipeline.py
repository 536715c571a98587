"""The Kubeflow pipeline: pictures -> class pictures -> training -> evaluation -> gate ->
publication -> endpoint.

Where steps run is said here (secrets, GPU, tolerations, volumes, retries, caching); what they do,
in `steps` and below.
"""
# No `from __future__ import annotations`: kfp reads the annotations as types.

import os

from kfp import dsl, kubernetes

from atelier_training.dreambooth import steps

CONNECTION = os.environ.get("ATELIER_CONNECTION", "models")  # the data connection, a Secret
WORKSPACE_CLAIM = os.environ.get(
    "ATELIER_WORKSPACE_CLAIM", "dreambooth-workspace"
)  # a PVC, ReadWriteMany or one node
# where the image has the environment that pipelines/atelier_training/environment.sh makes
KFP_BIN = "/opt/kfp/bin"
S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
S3_PLACE = ("AWS_S3_ENDPOINT", "AWS_DEFAULT_REGION", "AWS_S3_BUCKET")  # a connection may lack them


def on_cpu(task: dsl.PipelineTask, cpu: str, memory: str) -> dsl.PipelineTask:
    """A step's share of a node, and the interpreter that knows kfp."""
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    path = f"{KFP_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return task.set_env_variable("PATH", path).set_env_variable("HOME", "/tmp")


def on_gpu(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """One GPU on the nodes that are kept free for them, with shared memory for its data loaders and
    for NCCL."""
    on_cpu(task, "8", "48Gi").set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.add_toleration(task, key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(
        task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="8Gi"
    )
    return task


def with_s3(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """The data connection's keys as environment; they are never parameters, which anyone may read
    in the UI."""
    kubernetes.use_secret_as_env(task, CONNECTION, {key: key for key in S3_KEYS})
    kubernetes.use_secret_as_env(task, CONNECTION, {key: key for key in S3_PLACE}, optional=True)
    return task


def with_workspace(task: dsl.PipelineTask) -> dsl.PipelineTask:
    kubernetes.mount_pvc(task, pvc_name=WORKSPACE_CLAIM, mount_path="/workspace")
    return task


@dsl.pipeline(
    name="dreambooth", description="From pictures of a thing to an endpoint that draws it."
)
def dreambooth(
    source: str,
    options: dict,
    questions: dict,
    destination: str,
    sha256: str = "",
    judges: dict = {},  # noqa: B006
    gate: str = "",
    workspace: str = "/workspace",
    modelcar: bool = False,
    modelcar_base: str = "",
    registry: str = "",
    endpoint: str = "",
    base: str = "",
    connection: str = "models",
    gpu: str = "a10g",
    namespace: str = "",
    sample_prompt: str = "",
) -> None:
    """Fine-tune a checkpoint on a subject, and serve it if it is good enough.

    Args:
        source: The pictures: s3://bucket/prefix, an https:// archive with sha256, or a folder of
            the workspace.
        options: Options of the training by name, as `atelier train dreambooth --help` lists them;
            model is needed.
        questions: Prompts, seeds and judge of the evaluation; see docs/fine-tuning.md.
        destination: s3://bucket/prefix below which the version is stored.
        sha256: Checksum of an archive.
        judges: Folders of CLIP and DINO weights by name, clip and dino.
        gate: Conditions on scores, such as "clip_i>=0.7, clip_t_subject>=0.25"; empty: everything
            is published.
        workspace: Mounted volume in which the training runs.
        modelcar: Also make a container image of the version, kept as an artifact in the form of an
            OCI image layout.
        modelcar_base: Image layout in the workspace that brings the image a shell, which oci://
            needs; empty: data alone.
        registry: URL of a model registry to enter the version into; empty: none.
        endpoint: Name of the endpoint, to which the version is added; empty: nothing is deployed.
        base: Checkpoint that the endpoint loads the adapter into, as `atelier deploy` takes it.
        connection: Data connection of the endpoint and of the registry entry.
        gpu: Kind of GPU of the endpoint, or cpu.
        namespace: Project of the endpoint; empty: the pipeline's own.
        sample_prompt: What the new endpoint is asked to draw.
    """
    ending = on_cpu(steps.report(), "1", "1Gi")
    ending.set_caching_options(False)
    with dsl.ExitHandler(ending, name="fine-tuning"):
        # Cached never: the same address may hold other pictures tomorrow.
        data = with_workspace(
            with_s3(on_cpu(steps.get_data(source=source, sha256=sha256), "1", "2Gi"))
        )
        data.set_caching_options(False).set_retry(3, backoff_duration="10s", backoff_factor=2.0)

        # Cached: they depend on the parameters alone, and cost minutes of a GPU.
        prior = with_s3(on_gpu(steps.generate_class_pictures(options=options)))
        prior.set_caching_options(True).set_retry(2, backoff_duration="30s")

        # Retried often: a retry continues from the checkpoint in the workspace, so it costs little.
        training = steps.train(
            options=options,
            workspace=workspace,
            pictures=data.outputs["pictures"],
            class_pictures=prior.outputs["class_pictures"],
        )
        with_workspace(with_s3(on_gpu(training))).set_caching_options(True).set_retry(
            4, backoff_duration="30s"
        )

        judged = steps.evaluate(
            options=options,
            questions=questions,
            judges=judges,
            pictures=data.outputs["pictures"],
            trained=training.outputs["trained"],
        )
        with_workspace(with_s3(on_gpu(judged))).set_caching_options(True).set_retry(
            2, backoff_duration="30s"
        )

        # Never retried: the scores are what they are.
        passed = on_cpu(steps.check_quality(scores=judged.outputs["Output"], gate=gate), "1", "1Gi")
        passed.set_caching_options(False)

        # Retried: a store may be away for a while, and a rerun completes what lacks. Never cached:
        # it is an effect.
        stored = steps.publish(
            destination=destination,
            trained=training.outputs["trained"],
            sheet=judged.outputs["sheet"],
        )
        with_s3(on_cpu(stored, "1", "2Gi")).after(passed).set_caching_options(False)
        stored.set_retry(5, backoff_duration="20s", backoff_factor=2.0)

        # Cached: the same version is the same image.
        # compared when the pipeline runs, not here
        with dsl.If(modelcar == True, name="packed"):  # noqa: E712
            image = steps.modelcar(
                published=stored.outputs["Output"],
                base=modelcar_base,
                trained=training.outputs["trained"],
            )
            with_workspace(on_cpu(image, "1", "2Gi")).set_caching_options(True).set_retry(
                2, backoff_duration="10s"
            )

        with dsl.If(registry != "", name="registered"):  # type: ignore[operator]
            entry = steps.register(
                published=stored.outputs["Output"],
                registry=registry,
                name=endpoint,
                connection=connection,
            )
            on_cpu(entry, "1", "1Gi").set_caching_options(False).set_retry(
                3, backoff_duration="10s"
            )

        # Not retried: a version that does not get ready will not the second time, and is removed.
        with dsl.If(endpoint != "", name="served"):  # type: ignore[operator]
            served = steps.deploy(
                published=stored.outputs["Output"],
                endpoint=endpoint,
                base=base,
                connection=connection,
                gpu=gpu,
                namespace=namespace,
                prompt=sample_prompt,
            )
            on_cpu(served, "1", "1Gi").set_caching_options(False)
