#!/usr/bin/env python3
"""A cluster that fits into a folder: stands in for `oc` on PATH, records every call and answers as
a cluster would.

FAKE_CLUSTER names the folder. `facts.json` in it says what the cluster is like; `objects.json` is
what was applied; `calls.txt` gets one line a call. `kustomize` is the one command that the real
kubectl does.
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["FAKE_CLUSTER"])
FACTS = json.loads((FOLDER / "facts.json").read_text())
OBJECTS = FOLDER / "objects.json"


def load() -> dict:
    return json.loads(OBJECTS.read_text()) if OBJECTS.exists() else {}


def key(kind: str, name: str) -> str:
    return f"{kind.split('.')[0].lower()}/{name}"


def apply(text: str, must_be_new: bool) -> int:
    import yaml  # most calls do without

    there = load()
    for doc in filter(
        None, yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    ):
        name = key(doc["kind"], doc["metadata"]["name"])
        if must_be_new and name in there:
            print(f"AlreadyExists {name}", file=sys.stderr)
            return 1
        state = (
            "unchanged" if there.get(name) == doc else "configured" if name in there else "created"
        )
        there[name] = doc
        print(f"{name} {state}")
    OBJECTS.write_text(json.dumps(there))
    return 0


def get(kind: str, name: str, output: str) -> int:
    kind = kind.split(".")[0].lower()
    if kind == "nodes":
        if FACTS["nodes"] is None:
            return 1
        print("\n".join(FACTS["nodes"]))
        return 0
    if kind == "storageclass":
        print("true" if FACTS["default_storage_class"] else "")
        return 0
    if kind == "pods":
        print(FACTS["pods"])
        return 0
    if kind == "events":
        print(FACTS["events"])
        return 0
    there = load()
    if kind == "inferenceservice" and not name:
        print(
            "\n".join(
                found.split("/")[1] for found in there if found.startswith("inferenceservice/")
            )
        )
        return 0
    if key(kind, name) not in there and f"{kind}/{name}" not in FACTS["existing"]:
        return 1
    if "conditions" in output:
        print(FACTS["ready"], end="")
    elif "status.url" in output:
        print(f"https://{name}.apps.example.com", end="")
    return 0


def main(words: list[str]) -> int:
    with (FOLDER / "calls.txt").open("a") as log:
        log.write(" ".join(words) + "\n")
    while words and words[0] in ("--namespace", "-n"):
        words = words[2:]
    match words:
        case ["kustomize", folder]:
            os.execvp("kubectl", ["kubectl", "kustomize", folder])
        case ["auth", "can-i", _, resource, *_]:
            if not FACTS["logged_in"]:
                print("error: You must be logged in to the server (Unauthorized)", file=sys.stderr)
                return 1
            allowed = resource not in FACTS["forbidden"]
            print("yes" if allowed else "no")
            return 0 if allowed else 1
        case ["config", "current-context"]:
            print("fake")
        case ["api-resources", *_]:
            print("\n".join(f"x  {api}  true  {kind}" for api, kind in FACTS["kinds"]))
        case ["image", "info", *_]:
            return 0 if FACTS["image_pullable"] else 1
        case ["get", kind, name, *rest] if not name.startswith("-"):
            return get(kind, name, " ".join(rest))
        case ["get", kind, *rest]:
            return get(kind, "", " ".join(rest))
        case ["apply", "-f", path]:
            return apply(Path(path).read_text(), must_be_new=False)
        case ["create", "-f", "-"]:
            return apply(sys.stdin.read(), must_be_new=True)
        case ["start-build", *_]:
            return apply(
                f"{{kind: ImageStreamTag, metadata: {{name: 'atelier:{FACTS['version']}'}}}}",
                must_be_new=True,
            )
        case ["delete", kind, name, *_]:
            there = load()
            there.pop(key(kind, name), None)
            OBJECTS.write_text(json.dumps(there))
        case _:
            print(f"fake oc does not know {words}", file=sys.stderr)
            return 2
    return 0


sys.exit(main(sys.argv[1:]))
