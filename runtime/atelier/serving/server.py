"""Assembles the server: settings, model, routes, middleware, KServe's ModelServer, start and
drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import uvloop
from kserve import ModelServer
from kserve import model_server as kserve_server
from kserve.constants.constants import MAX_GRPC_MESSAGE_LENGTH

from atelier.errors import AtelierError, StartError
from atelier.protocols.http.connection import BoundedConnection
from atelier.protocols.http.error_bodies import add_error_handlers
from atelier.protocols.http.metrics import router as metrics_router
from atelier.protocols.http.models import router as models_router
from atelier.protocols.http.openapi import describe
from atelier.protocols.kserve.dataplane import KeyedDataPlane, OneModel, OneModelExtension
from atelier.serving.assembly import Served, serve_kind
from atelier.serving.middleware import front
from atelier.serving.studio import PATH as STUDIO_PATH
from atelier.serving.studio import StudioDoor, check_studio
from atelier.settings import Settings
from atelier.telemetry import Metrics
from atelier.tracing import Tracer
from atelier.workers.image_front import ImageFront
from atelier.workers.text_front import TextFront

log = logging.getLogger(__name__)

UNLIMITED = -1  # as gRPC says it


class AtelierServer(ModelServer):
    """KServe's server, with a drain of our own: SIGTERM stops admission, lets work finish, then
    closes the ports."""

    def __init__(self, served: Served, settings: Settings, **options: Any) -> None:
        registry = OneModel()
        super().__init__(registered_models=registry, **options)
        self.dataplane = KeyedDataPlane(registry, settings)
        self.model_repository_extension = OneModelExtension(registry)
        self._served = served
        self._model = served.model
        self._settings = settings
        self._failed = False
        self._stopping: asyncio.Task[None] | None = None
        self._studio: StudioDoor | None = None

    def run(self) -> int:
        """Serve until stopped; the exit code is 1 if the model could not be loaded."""
        if self.event_loop != "asyncio":  # KServe would leave --event-loop unheeded
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        self.start([self._served.adapter(self._load)])
        return int(self._failed)

    async def _load(self) -> None:
        try:
            await self._served.load()
        except StartError as error:
            log.error("the model cannot be served: %s", error)
        except Exception:  # a fault of ours or of a library; the process must still end in order
            log.exception("the model cannot be served")
        else:
            log.info("ready: %s", self._model.name)
            print(self._hint(), flush=True)
            return
        self._failed = True
        await self._close()

    def beyond_repair(self, error: AtelierError) -> None:
        """No worker can be brought back: end with a code, so that the cluster starts a new pod."""
        log.error("the server ends: %s", error)
        self._failed = True
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._drain())

    def _hint(self) -> str:
        """A command to paste, which ends with a picture on disk or an answer on the screen."""
        origin = f"localhost:{self.http_port}"
        if self.ssl_certfile:
            origin = f"--cacert {self.ssl_certfile} https://{origin}"
        hint = self._served.hint.format(origin=origin, name=self._model.name)
        if self._studio is not None:
            hint += f"\nOr draw in a browser: http://{origin}{STUDIO_PATH}\n"
        return hint

    def register_signal_handler(self) -> None:
        """Until uvicorn takes the signals over, nothing runs that would need a drain."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: sys.exit(0))

    def setup_event_loop(self) -> None:
        """Nothing yet: the loop that will run is not made before `_serve`, and KServe would set up
        another."""

    async def _serve(self) -> None:
        super().setup_event_loop()
        # uvicorn installs its own signal handlers when it starts; give it ours to install.
        self._rest_server._server.handle_exit = self._on_signal
        inner = self._served.door(kserve_server.app) if self._served.door else kserve_server.app
        app = front(inner, self._settings)
        if self._settings.studio:
            app = self._studio = StudioDoor(app, self.http_port, self._settings)
        self._rest_server.config.app = app
        self._rest_server.config.http = BoundedConnection
        await asyncio.gather(*self.servers)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._stopping is None:
            log.info(
                "%s: draining for up to %g s",
                signal.Signals(number).name,
                self._settings.drain_seconds,
            )
            self._stopping = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._served.drain(self._settings.drain_seconds)
        await self._close()

    async def _close(self) -> None:
        if self._grpc_server is not None and self._grpc_server._server is not None:
            await self._grpc_server.stop()
        if self._studio is not None:
            await self._studio.close()
        self._rest_server._server.should_exit = True


def serve(settings: Settings, arguments: Sequence[str]) -> int:
    """Build and run the server. `arguments` are the options of the command line that are
    KServe's."""
    options = _kserve_options(arguments, settings.max_body_bytes)
    if settings.studio:
        check_studio(tls=bool(options.ssl_certfile))
    own_engine = settings.engine == "transformers"  # a child engine has the names itself
    metrics = Metrics(
        Tracer.from_environment(settings.served_name),
        settings.log_prompts,
        alias=settings.served_name if settings.metric_aliases and own_engine else "",
    )
    app = kserve_server.app
    add_error_handlers(app)
    served = serve_kind(settings, app, metrics)
    metrics.watch(lambda: served.model.depth, served.model.device_memory)
    app.include_router(models_router(served.model, served.outputs, served.expected))
    app.include_router(metrics_router(served.child_metrics))
    describe(app, served.forwards)
    server = AtelierServer(
        served, settings, http_port=options.http_port, grpc_port=options.grpc_port
    )
    if isinstance(served.model, ImageFront | TextFront):
        served.model.on_beyond_repair = server.beyond_repair
    return server.run()


def _kserve_options(arguments: Sequence[str], max_body_bytes: int) -> Namespace:
    """What KServe read from the command line when it was imported, checked.

    Raises:
        StartError: an option that KServe does not know and would pass over in silence, more than
            one worker, a certificate that cannot be used, or a port that cannot be had.
    """
    unknown = kserve_server.parser.parse_known_args(arguments)[1]
    if unknown:
        raise StartError(
            f"{' '.join(unknown)}: neither atelier nor KServe has such an option; see `atelier"
            " serve --help`"
        )
    options = kserve_server.args
    if options.workers != 1:
        raise StartError(
            "--workers must be 1: one process owns the device; run more replicas instead"
        )
    _check_certificate(options.ssl_certfile, options.ssl_keyfile)
    _check_port("--http_port", options.http_port)
    if options.enable_grpc:
        _check_port("--grpc_port", options.grpc_port)
    options.configure_logging = False  # ours is set up already
    if (
        options.grpc_max_receive_message_length == MAX_GRPC_MESSAGE_LENGTH
    ):  # not given: the limit that HTTP bodies have
        options.grpc_max_receive_message_length = max_body_bytes
    if (
        options.grpc_max_send_message_length == MAX_GRPC_MESSAGE_LENGTH
    ):  # its 8 MiB are fewer than eight pictures need
        options.grpc_max_send_message_length = UNLIMITED
    return options


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Find out whether the server can speak TLS, if it is to.

    Raises:
        StartError: it cannot; the message has the system's reason.
    """
    if bool(certificate) != bool(key):
        missing = "--ssl_keyfile" if certificate else "--ssl_certfile"
        raise StartError(f"{missing} is missing: TLS needs a certificate and its key")
    if not certificate:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or error
        raise StartError(
            f"--ssl_certfile={certificate} --ssl_keyfile={key} cannot be used: {reason}"
        ) from None


def _check_port(option: str, port: int) -> None:
    """Find out before the weights are loaded whether the server can listen.

    Raises:
        StartError: it cannot; the message has the system's reason.
    """
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("", port))
            trial.listen()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(f"{option}={port} cannot be listened on: {reason}") from None
