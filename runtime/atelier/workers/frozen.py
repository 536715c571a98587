"""Imported last by the process that workers are forked from, so that they go on sharing its memory.

A collection of garbage writes to every object that it looks at, and a page that a worker has
written is its own from then on. What was imported by now is never looked at again.
"""

import gc

from atelier.hardware.heap import give_back_freed_memory

gc.collect()
give_back_freed_memory()
gc.freeze()
