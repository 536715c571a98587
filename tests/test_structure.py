"""The rules of the house that a machine can check: imports go one way, and engines know no protocol."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "runtime" / "atelier"

# From the ground up. A module may import its own room and those below it.
FLOORS = [
    {"errors", "units", "__init__"},
    {"settings", "events", "profiles", "table"},
    {"streams", "logs", "tracing"},
    {"hardware", "sources"},
    {"images", "text", "telemetry"},
    {"doctor", "protocols"},
    {"deploy"},
    {"kinds"},
    {"server"},
    {"cli", "__main__"},
]


def room(module: str) -> str:
    """The first name below `atelier`: a package or a file."""
    return module.split(".")[1] if "." in module else "__init__"


def floor(name: str) -> int:
    return next((level for level, rooms in enumerate(FLOORS) if name in rooms), -1)


def imports(path: Path) -> set[str]:
    """Every `atelier` module that a file imports, inside functions too, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    skipped = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    hidden = {id(inner) for node in skipped for inner in ast.walk(node)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "atelier":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if _is_module(inner) else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "atelier"}
    return found


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split(".")[1:])
    return place.is_dir() or place.with_suffix(".py").is_file()


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py")
    assert floor(own) >= 0, f"{own} has no floor yet: add it to FLOORS"
    for module in imports(path):
        other = room(module)
        assert other == own or floor(other) <= floor(own), f"{relative} imports {module}, which is above it"


def test_images_and_text_do_not_know_each_other() -> None:
    for own, other in (("images", "text"), ("text", "images")):
        for path in (ROOT / own).rglob("*.py"):
            assert not any(room(module) == other for module in imports(path)), path


def test_protocols_touch_no_tensor() -> None:
    for path in (ROOT / "protocols").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("torch", "diffusers", "transformers")}, path


def test_no_file_outgrows_its_noun() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 320}


def test_rooms_have_no_circles() -> None:
    """Within a room, no module imports one that imports it back."""
    graph = {".".join(("atelier", *path.relative_to(ROOT).with_suffix("").parts)): imports(path) for path in FILES}
    graph = {module.removesuffix(".__init__"): used for module, used in graph.items()}

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            used == goal or (used not in seen and reaches(used, goal, seen | {used})) for used in graph.get(start, ())
        )

    assert not [module for module in graph if module.count(".") > 1 and reaches(module, module, set())]
