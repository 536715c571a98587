"""The rules of the house that a machine can check: imports go one way and in no circle, a name
means one thing, and engines know no protocol. Every Python file that is no test is held to them."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = {"runtime": ROOT / "runtime", "pipelines": ROOT / "pipelines", ".": ROOT}

# From the ground up. A module may import its own room and those below it.
FLOORS = [
    {"atelier", "atelier.errors", "atelier.units", "atelier_training"},
    {"atelier.profiles", "atelier.events", "atelier.bounds", "atelier.caller", "atelier.children"},
    {"atelier.settings"},
    {"atelier.streams", "atelier.logs", "atelier.tracing"},
    {
        "atelier.hardware",
        "atelier.sources",
        "atelier.builtin",
        "atelier.deploy",
        "atelier.provenance",
    },
    {"atelier.studio"},
    {"atelier.images", "atelier.text", "atelier.telemetry"},
    {"atelier.workers"},
    {"atelier.protocols"},
    {"atelier.serving"},
    {"atelier.agents"},
    {"atelier.bench"},
    {"atelier.tune"},
    {"atelier_training.dreambooth", "atelier_training.notebook"},
    {"atelier_training.compile", "atelier_training.local", "atelier_training.client"},
    {"atelier.cli"},
    {"atelier.__main__", "benchmarks", "docs", "examples", "make", "manifests"},
]


def files() -> dict[str, Path]:
    """Every module of the project but tests, by its import path."""
    found = {}
    for folder, base in (
        ("runtime/atelier", "runtime"),
        ("pipelines/atelier_training", "pipelines"),
        ("benchmarks", "."),
        ("docs", "."),
        ("examples", "."),
        ("manifests", "."),
        ("make", "."),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(PLACES[base]).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


FILES = files()


def room(module: str) -> str:
    """The longest beginning of a module's name that has a floor."""
    parts = module.split(".")
    beginnings = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    known = {name for rooms in FLOORS for name in rooms}
    return next((name for name in beginnings if name in known and name != "atelier"), parts[0])


def floor(name: str) -> int:
    return next((level for level, rooms in enumerate(FLOORS) if name in rooms), -1)


def imports(path: Path) -> set[str]:
    """Every module of ours that a file imports, inside functions too, but not for types alone."""
    tree = ast.parse(path.read_text())
    typing_only = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    hidden = {id(inner) for node in typing_only for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in FILES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(FILES)


GRAPH = {module: imports(path) for module, path in FILES.items()}


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    own = room(module)
    assert floor(own) >= 0, f"{own} has no floor yet: add it to FLOORS"
    for used in GRAPH[module]:
        other = room(used)
        allowed = other == own or floor(other) <= floor(own)
        assert allowed, f"{module} imports {used}, which is above it"


def test_nothing_imports_in_a_circle() -> None:
    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        for used in GRAPH[start]:
            if used == goal:
                return True
            if used not in seen:
                seen.add(used)
                if reaches(used, goal, seen):
                    return True
        return False

    assert not [module for module in GRAPH if reaches(module, module, set())]


def test_no_class_name_is_used_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, path in FILES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert not {name: modules for name, modules in places.items() if len(modules) > 1}


def test_no_file_is_named_like_a_well_known_module() -> None:
    """A package may be named after the protocol it speaks; a file has a name of its own."""
    known = set(sys.stdlib_module_names) | set(metadata.packages_distributions())
    taken = {module.rsplit(".", 1)[-1]: module for module, path in FILES.items() if "." in module
             and path.name != "__init__.py"}  # fmt: skip
    assert not set(taken) & (known - {"__main__"})


def test_images_and_text_do_not_know_each_other() -> None:
    for own, other in (("images", "text"), ("text", "images")):
        for module, used in GRAPH.items():
            if module.startswith(f"atelier.{own}"):
                assert not [name for name in used if name.startswith(f"atelier.{other}")], module


def test_the_studio_knows_nothing_but_the_public_apis() -> None:
    for module, used in GRAPH.items():
        if module.startswith("atelier.studio"):
            others = {room(name) for name in used} - {"atelier.studio"}
            assert others <= {"atelier.errors", "atelier.units"}, module


def test_protocols_touch_no_tensor() -> None:
    for module, path in FILES.items():
        if not module.startswith("atelier.protocols"):
            continue
        tree = ast.parse(path.read_text())
        found = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {
            name for name in found if name.split(".")[0] in ("torch", "diffusers", "transformers")
        }, module


def test_no_file_outgrows_its_noun() -> None:
    long = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert not {module: lines for module, lines in long.items() if lines > 320}
