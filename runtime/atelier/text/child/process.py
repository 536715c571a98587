"""A child engine under supervision: started, checked, restarted within bounds, drained; requests go
to it over HTTP.

What the engine says passes through unread. Which engines there are, and their options, is data in
`specs`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

from atelier.children import free_port, start_child
from atelier.errors import Busy, Draining, NotReady, StartError
from atelier.settings import Settings
from atelier.streams import EventStream
from atelier.text.child.command_line import command_line
from atelier.text.child.environment import child_environment
from atelier.text.child.specs import served_paths, spec_for
from atelier.text.child.start_clock import StartClock
from atelier.text.child.upstream import submit as submit_upstream
from atelier.text.child.wire import Connection, Wire
from atelier.text.compile_cache import compile_cache
from atelier.text.request import TextRequest

log = logging.getLogger(__name__)

START_SECONDS = 3600
WARM_UP_SECONDS = 600
RESTARTS = 5
WITHIN_SECONDS = 600
CHECK_SECONDS = 1.0
MISSED_CHECKS = 30


class ProcessEngine:
    """One engine in one child process and its address. `start` blocks until the engine answers."""

    def __init__(self, settings: Settings, model: Path, name: str) -> None:
        self.name = name
        self.spec = spec_for(settings)
        self.paths = served_paths(settings)
        self.healthy = False
        self.trouble = "not started"
        self.inflight = 0
        self.seconds = settings.request_timeout
        self.context = settings.max_model_len
        self._settings = settings
        self._folder = Path(tempfile.mkdtemp(prefix="atelier-"))
        self._socket = self._folder / "engine.sock"
        self._port = 0 if self.spec.socket else free_port()
        self._command = command_line(settings, model, self._socket, self._port)
        self._cache = compile_cache(settings, model)
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._draining = self._closed = False
        self._clock = StartClock()
        self.wire = Wire(self._socket if self.spec.socket else None, self._port)
        self._watcher = threading.Thread(target=self._watch, name="engine-watch", daemon=True)

    def start(self) -> None:
        """Start the child and wait until it is healthy.

        Raises:
            StartError: it exited, or was not healthy in time.
        """
        self._cache.prepare()
        self._clock.begin()
        self.trouble = "starting"
        self._spawn()
        if not self._wait_healthy():
            self._kill()
            raise StartError(f"{self.spec.name} did not start: {self.trouble}")
        self._cache.seal()
        self._watcher.start()

    def warm_up(self) -> None:
        """Let the engine answer one short request, which makes it compile what it compiles lazily.

        Raises:
            StartError: it fails even that.
        """
        if "/v1/completions" not in self.paths:
            return
        body = json.dumps({"model": self.name, "prompt": "warm-up", "max_tokens": 4}).encode()
        status, _ = self._request("POST", "/v1/completions", body, timeout=WARM_UP_SECONDS)
        if status != 200:
            self.close()
            raise StartError(
                f"{self.spec.name} answered its warm-up request with {status}; its log says why"
            )

    def submit(self, request: TextRequest) -> EventStream:
        """Translate a request of ours for the child and its answer into events; see `upstream`."""

        return submit_upstream(self, request)

    async def post(self, path: str, body: bytes, content_type: str) -> Connection:
        """Send a body to the child and wait for the head of its answer; the caller reads it and
        gives the connection back to `wire`.

        Raises:
            NotReady: the engine cannot be reached, or left before it answered.
        """
        try:
            return await self.wire.ask("POST", path, body, content_type)
        except OSError as error:
            raise self.gone(f"cannot be reached and is being restarted: {error}") from error

    async def metrics(self) -> str:
        """The child's own metrics, without those of its Python process, which would clash with
        ours."""
        if not self.healthy:
            return ""
        try:
            answer = await self.wire.ask("GET", self.spec.metrics)
        except OSError:  # it has just died, and the watch will notice
            return ""
        try:
            lines = (await answer.rest()).decode().splitlines()
        except OSError:
            return ""
        finally:
            self.wire.give_back(answer)
        kept = [
            line
            for line in lines
            if line.removeprefix("# HELP ")
            .removeprefix("# TYPE ")
            .startswith(self.spec.metrics_prefix)
        ]
        return "".join(f"{line}\n" for line in kept)

    def admit(self) -> None:
        """Count a request in; pair with `release`.

        Raises:
            Draining, NotReady, Busy: it may not run now.
        """
        if self._draining:
            raise Draining("the server is shutting down and takes no new requests")
        if not self.healthy:
            raise self.gone(f"is not ready: {self.trouble}")
        if self.inflight >= self._settings.max_queue_size:
            raise Busy(
                f"{self.inflight} requests are running, MAX_QUEUE_SIZE is"
                f" {self._settings.max_queue_size}",
                1,
            )
        self.inflight += 1

    @property
    def expected_s(self) -> float | None:
        """Seconds until it serves again, if it is to and that is known."""
        return None if self._closed else self._clock.remaining_s

    def gone(self, what: str) -> NotReady:
        """The error of a request that it cannot serve, or not any more."""
        return NotReady(f"the engine {self.spec.name} {what}", self.expected_s)

    def release(self) -> None:
        """Count a request out."""
        self.inflight -= 1

    def drain(self, seconds: float) -> None:
        """Admit nothing more and let running requests end, for at most `seconds`."""
        self._draining = True
        end = time.monotonic() + seconds
        while self.inflight and time.monotonic() < end:
            time.sleep(0.05)

    def close(self) -> None:
        """Stop the child: politely, then by force."""
        self._closed = True
        self.healthy = False
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop in 10 s and is killed", self.spec.name)
        self._kill()

    def _spawn(self) -> None:
        self._socket.unlink(missing_ok=True)
        log.info("starting %s", " ".join(self._command))
        self._process = start_child(
            self._command,
            signal.SIGKILL,
            env=child_environment() | self._cache.environment(),
            cwd=self._folder,
            start_new_session=True,
        )

    def _wait_healthy(self) -> bool:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and not self._closed:
            code = self._process.poll() if self._process is not None else None
            if code is not None:
                self.trouble = f"it exited with code {code}; its log says why"
                return False
            if self._check():
                self.paths = self._told_paths()
                self._clock.done()
                self.healthy, self.trouble = True, ""
                return True
            time.sleep(0.1)
        self.trouble = f"not healthy after {START_SECONDS} s"
        return False

    def _watch(self) -> None:
        """Restart the child when it exits or stops answering, until it has failed too often."""
        missed = 0
        while not self._closed:
            time.sleep(0.1 if missed else 0.2)
            exited = self._process is None or self._process.poll() is not None
            missed = 0 if not exited and self._check() else missed + 1
            if (exited or missed >= MISSED_CHECKS) and not self._closed:
                self.healthy = False
                self._clock.begin()
                self._restart()
                missed = 0
            elif not missed:
                time.sleep(CHECK_SECONDS)

    def _restart(self) -> None:
        now = time.monotonic()
        if len(self._restarts) == RESTARTS and now - self._restarts[0] < WITHIN_SECONDS:
            self.trouble = (
                f"{self.spec.name} failed {RESTARTS} times in {WITHIN_SECONDS} s and is left"
                " stopped"
            )
            log.error(self.trouble)
            self._kill()
            self._closed = True
            return
        recent = sum(1 for when in self._restarts if now - when < WITHIN_SECONDS)
        self._restarts.append(now)
        self._kill()
        delay = 0.0 if not recent else min(30.0, 2.0 ** (recent - 1))
        self.trouble = f"{self.spec.name} stopped and is being restarted"
        log.error("%s stopped; restarting it in %.0f s", self.spec.name, delay)
        time.sleep(delay)
        if not self._closed:
            self._spawn()
            self._wait_healthy()

    def _check(self) -> bool:
        try:
            return self._request("GET", self.spec.health, None, timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _told_paths(self) -> tuple[str, ...]:
        """Of the engine's paths those that it has for this model, if it tells."""
        if not self.spec.tells_paths:
            return self.paths
        try:
            status, raw = self._request("GET", "/openapi.json", None, timeout=30)
            told = json.loads(raw)["paths"] if status == 200 else self.paths
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return self.paths
        return tuple(path for path in self.paths if path in told)

    def _request(
        self, method: str, path: str, body: bytes | None, timeout: float
    ) -> tuple[int, bytes]:
        connection = _Connection(self._socket if self.spec.socket else None, self._port, timeout)
        try:
            connection.request(
                method, path, body, {"Content-Type": "application/json"} if body else {}
            )
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _kill(self) -> None:
        """End the whole process group: engines have workers that may outlive their parent."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class _Connection(http.client.HTTPConnection):
    """HTTP over the child's socket file, or its port."""

    def __init__(self, path: Path | None, port: int, timeout: float) -> None:
        super().__init__("127.0.0.1", port or None, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
