"""A request's own copy of a pipeline: the modules are shared, schedulers and the state of a call
are not, and what would change the modules does nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

from atelier.images.interception import is_pipeline

# Methods of a pipeline that change the modules it shares with all others. Pipelines call the first
# at the end of every picture; it would take offload hooks and with them the gates away.
OF_THE_OWNER = (
    "maybe_free_model_hooks",
    "remove_all_hooks",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_group_offload",
)

_devices: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""Where each pipeline computes, which does not change once it draws."""


def own_copy(pipeline: Any, scheduler: Any, watch: Callable[[Any, Any], None]) -> Any:
    """A shallow copy that shares the modules but has schedulers and call state of its own, inner
    pipelines included.

    Attributes are set through `__dict__`: a pipeline's own `__setattr__` would write to the config
    that all copies share.
    """
    own = copy.copy(pipeline)
    if hasattr(type(pipeline), "_execution_device"):  # the picture as it was sent has none
        if pipeline not in _devices:
            _devices[pipeline] = pipeline._execution_device
        own.__dict__["_device"] = _devices[pipeline]
        own.__class__ = _knowing_its_device(pipeline.__class__)
    for name, value in vars(pipeline).items():
        if hasattr(value, "set_timesteps"):
            fresh = copy.deepcopy(
                scheduler if scheduler is not None and name == "scheduler" else value
            )
            watch(own, fresh)
            own.__dict__[name] = fresh
        elif is_pipeline(value):
            own.__dict__[name] = own_copy(value, None, watch)
    own.__dict__.update(dict.fromkeys(OF_THE_OWNER, _leave_alone))
    return own


@cache
def _knowing_its_device(pipeline_class: type) -> type:
    """The class, but that `_execution_device` is known. Asked for that, a pipeline looks at every
    module of every component: some milliseconds, several times before a request's first step, in
    which the device waits."""
    known = property(lambda own: own.__dict__["_device"])
    same = {"__module__": pipeline_class.__module__, "__qualname__": pipeline_class.__qualname__}
    return type(pipeline_class.__name__, (pipeline_class,), same | {"_execution_device": known})


def _leave_alone(*args: Any, **kwargs: Any) -> None:
    """The shared modules are `modules.SharedModules`' to change."""
