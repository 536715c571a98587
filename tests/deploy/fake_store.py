"""What an API server keeps: objects with generations, resource versions and field owners.

Ownership is kept per leaf: a list whose items have a merge key is a map, any other list one value.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]
MERGE_KEYS = {"volumeMounts": "mountPath", "ports": "containerPort"}
SERVERS = {"uid", "generation", "resourceVersion", "creationTimestamp", "managedFields"}


class Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            "details": details,
            "metadata": {},
        }


def merge_key(name: str, items: list[Any]) -> str:
    """The key by which a list is a map; empty: it is one value."""
    key = MERGE_KEYS.get(name, "name")
    return key if items and all(isinstance(i, dict) and key in i for i in items) else ""


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf of an object with its path."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list) and (key := merge_key(path[-1], value)):
        for item in value:
            yield from leaves(item, (*path, f"[{key}={item[key]}]"))
    else:
        yield path, value


def owned(document: Object) -> dict[Path, Any]:
    """The leaves that somebody owns: not the server's own and not the identity."""
    skip = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}
    return {
        path: value
        for path, value in leaves(document)
        if path
        and path not in skip
        and path[0] != "status"
        and path[:2] not in {("metadata", name) for name in SERVERS}
    }


def put(document: Any, path: Path, value: Any) -> None:
    """Set the leaf at a path; what lies on the way is made."""
    for step, following in itertools.pairwise(path):
        if isinstance(document, list):
            document = _item(document, step)
        else:
            new: Any = [] if following.startswith("[") else {}
            there = document.get(step)
            # A list in another form is one value, and is replaced as one.
            if not isinstance(there, type(new)) or (new == [] and not _has_key(there, following)):
                document[step] = new
            document = document[step]
    if isinstance(document, list):
        document = _item(document, path[-1])
    else:
        document[path[-1]] = copy.deepcopy(value)


def remove(document: Any, path: Path) -> None:
    """Take the leaf at a path away, and what became empty on the way."""
    step, *rest = path
    if isinstance(document, list):
        if not _has_key(document, step):
            return
        inner = _item(document, step)
        if rest:
            remove(inner, tuple(rest))
        key = step[1:].partition("=")[0]
        if set(inner) <= {key}:
            document.remove(inner)
    elif step in document:
        if rest:
            remove(document[step], tuple(rest))
        if not rest or document[step] in ({}, []):
            del document[step]


def _has_key(items: list[Any], step: str) -> bool:
    """Whether a list's items have the key by which a step chooses one."""
    key = step[1:].partition("=")[0]
    return all(isinstance(item, dict) and key in item for item in items)


def _item(items: list[Object], step: str) -> Object:
    key, _, wanted = step[1:-1].partition("=")
    for item in items:
        if str(item[key]) == wanted:
            return item
    items.append({key: int(wanted) if wanted.isdigit() else wanted})
    return items[-1]


def merge(old: Any, patch: Any, name: str = "", strategic: bool = False) -> Any:
    """A merge patch (RFC 7396), or a strategic one, which merges lists by their keys."""
    if isinstance(patch, dict):
        result = dict(old) if isinstance(old, dict) else {}
        for field, value in patch.items():
            if field.startswith("$"):
                continue
            if value is None:
                result.pop(field, None)
            else:
                result[field] = merge(result.get(field), value, field, strategic)
        return result
    both = [*old, *patch] if isinstance(patch, list) and isinstance(old, list) else []
    if strategic and (key := merge_key(name, both)):
        items = {item[key]: item for item in old}
        for item in patch:
            if item.get("$patch") == "delete":
                items.pop(item[key], None)
            else:
                items[item[key]] = merge(items.get(item[key]), item, "", True)
        return list(items.values())
    return copy.deepcopy(patch)


class Store:
    """Objects by (resource, namespace, name)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.owners: dict[tuple[str, str, str], dict[str, set[Path]]] = {}
        self.versions = itertools.count(1)

    def write(self, key: tuple[str, str, str], document: Object, manager: str) -> Object:
        """Put an object by create, update or patch: what changed belongs to the manager."""
        old = self.objects.get(key)
        before, after = owned(old or {}), owned(document)
        changed = {p for p, v in after.items() if p not in before or before[p] != v}
        for owner, paths in self.owners.setdefault(key, {}).items():
            if owner != manager:
                paths -= changed | (before.keys() - after.keys())
        self.owners[key].setdefault(manager, set()).update(changed)
        return self._keep(key, document)

    def apply(
        self, key: tuple[str, str, str], document: Object, manager: str, force: bool
    ) -> Object:
        """Server-side apply, before admission.

        Raises:
            Refused: a field that differs belongs to another manager.
        """
        live, owners = self.objects.get(key, {}), self.owners.get(key, {})
        wanted, there = owned(document), owned(live)
        conflicts = [
            (owner, path)
            for path, value in wanted.items()
            for owner, paths in owners.items()
            if owner != manager and path in paths and there.get(path) != value
        ]
        if conflicts and not force:
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{owner}" using {document["apiVersion"]}',
                    "field": "." + ".".join(path),
                }
                for owner, path in conflicts
            ]
            said = "\n".join(f"{c['message']}: {c['field']}" for c in causes)
            message = f"Apply failed with {len(causes)} conflict(s): {said}"
            raise Refused(409, "Conflict", message, causes=causes)
        result = copy.deepcopy(live) or {
            name: copy.deepcopy(document[name]) for name in ("apiVersion", "kind")
        }
        result.setdefault("metadata", {})["name"] = key[2]
        if key[1]:
            result["metadata"]["namespace"] = key[1]
        others = set().union(*(p for owner, p in owners.items() if owner != manager))
        for path in owners.get(manager, set()) - wanted.keys() - others:
            remove(result, path)
        for path, value in wanted.items():
            put(result, path, value)
        return result

    def own(self, key: tuple[str, str, str], document: Object, manager: str, force: bool) -> None:
        """The manager of an apply owns what it applied, no more and no less."""
        wanted = set(owned(document))
        for owner, paths in self.owners.setdefault(key, {}).items():
            if owner != manager and force:
                paths -= wanted
        self.owners[key][manager] = wanted

    def _keep(self, key: tuple[str, str, str], document: Object) -> Object:
        old = self.objects.get(key)
        document = copy.deepcopy(document)
        meta = document.setdefault("metadata", {})
        was = (old or {}).get("metadata", {})
        parts = [
            {k: v for k, v in (d or {}).items() if k not in ("metadata", "status")}
            for d in (old, document)
        ]
        generation = was.get("generation", 0) + (old is None or parts[0] != parts[1])
        meta.update(
            uid=was.get("uid") or f"uid-{next(self.versions)}",
            generation=generation,
            creationTimestamp=was.get("creationTimestamp") or "2026-01-01T00:00:00Z",
        )
        if key[1]:
            meta["namespace"] = key[1]
        meta.pop("managedFields", None)
        if old and {**old, "metadata": {**was, "resourceVersion": 0}} == {
            **document,
            "metadata": {**meta, "resourceVersion": 0},
        }:
            return old
        meta["resourceVersion"] = str(next(self.versions))
        self.objects[key] = document
        return document

    def write_status(self, key: tuple[str, str, str], patch: Object) -> Object:
        """Merge into an object's status, which is no change of its spec."""
        if key not in self.objects:
            raise Refused(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        document = self.objects[key]
        self.objects[key] = {**document, "status": merge(document.get("status"), patch)}
        return self.objects[key]

    def delete(self, key: tuple[str, str, str]) -> Object:
        self.owners.pop(key, None)
        return self.objects.pop(key)
