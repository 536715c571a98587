"""What a start can do while torch and diffusers are imported: fetch the checkpoint and all that
goes with it, or bring weights that lie on a disk into the page cache.

It is done in a process of its own, since a download keeps threads busy and must end at once when
the server is stopped. Nobody asks it for anything: a worker does the same as if it were not there,
waits at the lock of a folder that is being filled (`sources/landing.py`), and finds it complete.
What fails here fails there too, and is said there.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait

from atelier.errors import AtelierError
from atelier.settings import Settings
from atelier.sources import Checkpoint, fetch_adapters, fetch_draft, on_this_machine
from atelier.sources.conditioning import find_conditioning
from atelier.sources.opened import open_checkpoint, streams
from atelier.sources.readahead import read_ahead
from atelier.units import gib

log = logging.getLogger(__name__)


def begin(settings: Settings) -> None:
    """Begin; no wait. Call while this process has no other thread, because it is forked."""
    process = multiprocessing.get_context("fork").Process(
        target=_bring, args=(settings,), name="ahead", daemon=True
    )
    process.start()
    threading.Thread(target=process.join, name="after ahead", daemon=True).start()


def _bring(settings: Settings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front ends it
    threading.Thread(target=_end_with_front, daemon=True).start()
    try:
        if streams(settings):  # to the memory of whom it is for
            return
        checkpoint = _fetched(settings)
        began = time.monotonic()
        files = dict.fromkeys(file for part in checkpoint.components for file in part.files)
        read = read_ahead(list(files))
        log.debug("%s of weights are in memory after %.1f s", gib(read), time.monotonic() - began)
    except (AtelierError, OSError) as error:
        log.debug("left to the workers: %s", error)


def _fetched(settings: Settings) -> Checkpoint:
    began = time.monotonic()
    remote = on_this_machine(settings) is None
    checkpoint = open_checkpoint(settings).inspect()
    if checkpoint.kind != "language_model":
        fetch_adapters(settings)
        find_conditioning(settings, checkpoint)
    elif settings.draft_model_id:
        fetch_draft(settings)
    if remote:
        log.info(
            "%s was fetched in %.1f s, beside imports",
            settings.model_id,
            time.monotonic() - began,
        )
    return checkpoint


def _end_with_front() -> None:
    front = multiprocessing.parent_process()
    assert front is not None
    wait([front.sentinel])
    os._exit(0)
