"""Threads of the front, by kind of work: what reads pictures does not wait for what writes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from atelier.hardware.container import usable_cpus

Result = TypeVar("Result")

# Reading a body may fetch a picture from a host in ALLOWED_IMAGE_HOSTS, which takes up to ten
# seconds of doing nothing.
_reading = ThreadPoolExecutor(16, thread_name_prefix="reading")
# A large picture takes hundreds of megabytes while it is decoded.
_decoding = ThreadPoolExecutor(2, thread_name_prefix="decoding")
# Storing waits for another server, and for a second try.
_storing = ThreadPoolExecutor(16, thread_name_prefix="storing")
# A group's pictures are done at one moment, and their files are what everybody then waits for.
_writing = ThreadPoolExecutor(min(8, max(2, int(usable_cpus() / 2))), thread_name_prefix="writing")


async def reading(work: Callable[..., Result], *arguments: object) -> Result:
    """`work(*arguments)` in a thread for bodies that come in."""
    return await asyncio.get_running_loop().run_in_executor(_reading, work, *arguments)


async def decoding(work: Callable[..., Result], *arguments: object) -> Result:
    """`work(*arguments)` in a thread for pictures that have to be decoded here."""
    return await asyncio.get_running_loop().run_in_executor(_decoding, work, *arguments)


async def storing(work: Callable[..., Result], *arguments: object) -> Result:
    """`work(*arguments)` in a thread for pictures that go to object storage."""
    return await asyncio.get_running_loop().run_in_executor(_storing, work, *arguments)


async def writing(work: Callable[..., Result], *arguments: object) -> Result:
    """`work(*arguments)` in a thread for pictures and answers that go out."""
    return await asyncio.get_running_loop().run_in_executor(_writing, work, *arguments)
