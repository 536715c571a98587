"""Strict validation of objects: unknown fields are errors.

Where the machine has a validator with the platforms' real CRDs, that one judges. It is looked for
in the folder named by ATELIER_VALIDATOR, else in a folder `shared` beside the checkout. A clone
without it falls back to `kubernetes-validate` for core kinds and to the API models of the installed
`kserve` client for KServe's; other kinds are then not checked.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import kserve.models
import kubernetes.client
import kubernetes_validate

from tests.manifests.rendering import ROOT, Object

KUBERNETES = "1.32"
WITHOUT_SCHEMA = {"ImageStream", "BuildConfig", "Pipeline", "Task", "ResourceClaimTemplate"}
WITHOUT_SCHEMA |= {"LocalModelNamespaceCache"}
"""Kinds for which neither way has a schema; test_render.py looks at them by hand."""


@functools.cache
def validator() -> ModuleType | None:
    """The machine's validator, or None."""
    named = os.environ.get("ATELIER_VALIDATOR")
    folders = [Path(named)] if named else [parent / "shared" / "tools" for parent in ROOT.parents]
    for path in (folder / "validate_manifests.py" for folder in folders):
        if path.is_file():
            spec = importlib.util.spec_from_file_location("validate_manifests", path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


@functools.cache
def _kinds(module: ModuleType) -> dict[tuple[str, str], Any]:
    return module.custom_kinds()


def with_crds(module: ModuleType, docs: Sequence[Object]) -> list[str]:
    """Errors by the machine's validator."""
    found = []
    for doc in docs:
        errors = module.errors_of(doc, _kinds(module))
        if errors is None:
            errors = [f"no schema for {doc['kind']}"]
        if doc["kind"] in WITHOUT_SCHEMA:
            errors = [error for error in errors if not error.startswith("no schema for")]
        found += [f"{doc['kind']}/{doc['metadata']['name']}: {error}" for error in errors or []]
    return found


def with_client_models(docs: Sequence[Object]) -> tuple[list[str], set[str]]:
    """Errors by the installed packages, and the kinds that they do not know."""
    found, unknown = [], set()
    for doc in docs:
        label = f"{doc['kind']}/{doc['metadata']['name']}"
        group, _, version = doc["apiVersion"].rpartition("/")
        model = getattr(kserve.models, f"{version.capitalize()}{doc['kind']}", None)
        if group == "serving.kserve.io" and hasattr(model, "openapi_types"):
            found += [f"{label}: {error}" for error in _unknown_fields(doc, model.__name__, "")]
            continue
        try:
            kubernetes_validate.validate(doc, KUBERNETES, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            unknown.add(doc["kind"])
        except kubernetes_validate.ValidationError as error:
            found.append(f"{label}: {'.'.join(map(str, error.path))}: {error.message[:200]}")
    return found, unknown


def _unknown_fields(value: Any, type_name: str, path: str) -> Iterator[str]:
    """Fields of `value` that the API model `type_name` does not have, at any depth."""
    if type_name.startswith("list[") and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_fields(item, type_name[5:-1], f"{path}[{index}]")
        return
    model = getattr(kserve.models, type_name, None) or getattr(kubernetes.client, type_name, None)
    if model is None or not hasattr(model, "openapi_types"):
        return
    if not isinstance(value, dict):
        yield f"{path}: expected an object ({type_name}), found {value!r}"
        return
    types = {
        model.attribute_map[attribute]: kind for attribute, kind in model.openapi_types.items()
    }
    for key, item in value.items():
        if key not in types:
            yield f"{path}.{key}: {type_name} has no such field"
        else:
            yield from _unknown_fields(item, types[key], f"{path}.{key}")


def errors(docs: Sequence[Object]) -> list[str]:
    """Every error, by the strictest way this machine has."""
    module = validator()
    return with_crds(module, docs) if module else with_client_models(docs)[0]
