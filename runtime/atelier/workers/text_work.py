"""What a worker does for an embedded language model: generates, tokenizes, embeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from atelier.errors import AtelierError, GenerationFailed
from atelier.settings import Settings
from atelier.text.model import TextModel
from atelier.text.observer import SilentTextObserver
from atelier.workers import messages as m
from atelier.workers.relay import Relay, RelayedStream

log = logging.getLogger(__name__)


class LoadReporter(SilentTextObserver):
    """Tells the front how long the stages of the start took; requests are observed there."""

    def __init__(self, put: Callable[..., None]) -> None:
        self._put = put

    def loaded(self, stage: str, seconds: float) -> None:
        self._put(m.Observed("loaded", (stage, seconds)))


class TextWork:
    """One language model, served to the front. `put` sends messages there."""

    def __init__(self, settings: Settings, put: Callable[..., None]) -> None:
        self._model = TextModel(settings, LoadReporter(put))
        self._put = put
        self._relay = Relay(put)
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def progress(self) -> str:
        return self._model.progress

    def load(self) -> None:
        self._model.load()

    def close(self) -> None:
        self._model.close()

    def device(self) -> str:
        return str(self._model.metadata().get("device", ""))

    def traits(self) -> dict[str, Any]:
        """What protocols ask of a loaded model."""
        return {
            "metadata": self._model.metadata(),
            "context": self._model.context,
            "vocabulary_size": self._model.vocabulary_size,
            "template_takes": self._model.template_takes,
            "names": self._model.names,
        }

    def beat(self) -> m.Beat:
        return m.Beat(0.0, 0.0, self._model.device_memory(), self._model.gauges())

    def take(self, message: Any) -> None:
        if isinstance(message, m.Cancel):
            task = self._tasks.get(message.number)
            if not self._relay.cancel(message.number) and task is not None:
                task.cancel()  # its prompt is still being read
            return
        work = self._generate if isinstance(message, m.Generate) else self._ask
        task = asyncio.get_running_loop().create_task(work(message))
        self._tasks[message.number] = task
        task.add_done_callback(lambda done: self._tasks.pop(message.number, None))

    async def _generate(self, message: m.Generate) -> None:
        number, request = message.number, message.request
        try:
            await self._model.submit(request, partial(RelayedStream, self._relay, number))
            parser = await asyncio.to_thread(self._model.parser, request)
        except AtelierError as error:
            self._relay.drop(number)
            self._put(m.Refused(number, error))
        except Exception as error:  # a fault of ours or of a library; the client must hear of it
            self._relay.drop(number)
            self._refuse(number, error)
        else:
            self._put(m.Admitted(number, parser))
            self._relay.open(number)

    async def _ask(self, message: m.Ask) -> None:
        try:
            value = await getattr(self._model, message.method)(*message.arguments)
        except AtelierError as error:
            self._put(m.Refused(message.number, error))
        except Exception as error:
            self._refuse(message.number, error)
        else:
            self._put(m.Answered(message.number, value))

    def _refuse(self, number: int, error: Exception) -> None:
        log.exception("a request could not be prepared")
        self._put(m.Refused(number, GenerationFailed(f"{type(error).__name__}: {error}")))
