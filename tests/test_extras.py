"""What is imported is declared, and `pip install atelier` without extras is light: it can render,
upload and explain, and says which extra the rest needs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from atelier.cli.extras import MODULES
from tests.test_structure import FILES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
INSTALLED = metadata.packages_distributions()

# Rooms in which the light core may not import anything else, not even inside a function.
LIGHT = (
    "atelier.errors",
    "atelier.events",
    "atelier.units",
    "atelier.logs",
    "atelier.settings",
    "atelier.deploy",
    "atelier.provenance.containers",
    "atelier.provenance.marks",
    "atelier.cli.deploy",
    "atelier.cli.extras",
    "atelier.cli.main",
    "atelier.cli.pipeline",
    "atelier.cli.settings_table",
    "atelier.cli.warm",
    "atelier.bench.warming",
)
# What environment.sh installs for the pipeline, in an environment of its own on top of this one.
PIPELINE_ROOMS = (
    "atelier_training.client",
    "atelier_training.compile",
    "atelier_training.local",
    "atelier_training.dreambooth.pipeline",
    "atelier_training.dreambooth.steps",
)
OF_PIPELINES = {"kfp", "kfp_server_api", "urllib3"}
# `make pipeline-local` plays a cluster's S3 with it, in a checkout with the extra dev.
OF_DEVELOPERS = {"moto": {"atelier_training.local"}}


def distribution(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name
    return name[0].lower().replace("_", "-").replace(".", "-")


def declared(extra: str = "") -> set[str]:
    """Distributions that an extra brings, with those of extras it names and of the core."""
    found = {distribution(one) for one in PROJECT["dependencies"]}
    for one in EXTRAS.get(extra, []):
        if inner := re.fullmatch(r"atelier\[(.+)\]", one):
            for name in inner[1].split(","):
                found |= declared(name)
        else:
            found.add(distribution(one))
    return found


def distributions(module: str) -> set[str]:
    """Names under which a top-level module may be declared."""
    known = {"awscrt": ["awscrt"], "bitsandbytes": ["bitsandbytes"], "prodigyopt": ["prodigyopt"]}
    if module == "triton":
        return {"torch"}  # whose builds for CUDA bring it, and nothing else imports it
    names = INSTALLED.get(module) or known.get(module) or [module]
    return {distribution(name) for name in names}


def third_party(path: Path) -> set[str]:
    """Top-level modules that a file imports, inside functions too, and that are not ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"atelier", "atelier_training"}


IMPORTED = {
    module: third_party(path)
    for module, path in FILES.items()
    if module.split(".")[0] in ("atelier", "atelier_training")
}


@pytest.mark.parametrize("module", [name for name, used in IMPORTED.items() if used])
def test_what_a_file_imports_is_declared(module: str) -> None:
    core = declared()
    for used in IMPORTED[module]:
        if module in PIPELINE_ROOMS and used in OF_PIPELINES:
            continue
        if module in OF_DEVELOPERS.get(used, ()):
            assert distributions(used) & declared("dev")
            continue
        if distributions(used) & core:
            continue
        extras = [extra for extra, modules in MODULES.items() if used in modules]
        assert len(extras) == 1, f"{module} imports {used}: name it in cli/extras.py"
        (extra,) = extras
        own = {distribution(one) for one in EXTRAS[extra]}
        assert distributions(used) & own, f"{module} imports {used}: not in extra {extra}"


@pytest.mark.parametrize(
    "module", [name for name in FILES if any(f"{name}.".startswith(f"{room}.") for room in LIGHT)]
)
def test_the_core_imports_only_what_it_declares(module: str) -> None:
    core = declared()
    assert not {name for name in IMPORTED[module] if not distributions(name) & core}


def test_every_module_of_an_extra_is_imported_somewhere() -> None:
    everything = {name for used in IMPORTED.values() for name in used}
    # Started by name, not imported: kserve's server is uvicorn's.
    assert {name for modules in MODULES.values() for name in modules} - everything <= {"uvicorn"}


def test_no_module_of_an_extra_comes_with_the_core() -> None:
    core = declared()
    assert not [
        name for modules in MODULES.values() for name in modules if distributions(name) & core
    ]


# kserve brings the one, rich the other.
BROUGHT = {"opentelemetry", "markdown_it"}
BLOCKED = sorted({name for modules in MODULES.values() for name in modules} - BROUGHT)
# Finds nothing for the modules of every extra, as in an environment without them.
WITHOUT_EXTRAS = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from atelier.cli.main import main
main()
"""


def light(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in an environment that has the core alone."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "pipelines")])}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments],
        env=os.environ | paths | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


WORK = {
    "deploy render": (["deploy", "render", "pictures", "builtin/shapes"], "InferenceService"),
    "pipeline upload": (["pipeline", "upload", "--help"], "--host"),
    "settings": (["settings"], "MODEL_ID"),
    "profiles": (["profiles"], "sdxl"),
    "help": (["--help"], "doctor"),
    "train --help": (["train", "dreambooth", "--help"], "--steps"),
}


@pytest.mark.parametrize("command", WORK)
def test_the_core_works_without_extras(command: str, tmp_path: Path) -> None:
    arguments, expected = WORK[command]
    done = light(*arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


PROMPT = ["--instance-prompt", "a sks dog"]
NEEDS = {
    "serve": (["serve"], "serve"),
    "generate": (["generate", "a red square", "--output", "one.png"], "serve"),
    "doctor": (["doctor"], "serve"),
    "mcp": (["mcp"], "mcp"),
    "fetch": (["fetch", "s3://bucket/model"], "serve"),
    "studio": (["studio", "--endpoint", "http://localhost:8080"], "studio"),
    "train": (
        ["train", "dreambooth", "--model", ".", "--data", ".", "--output", "o", *PROMPT],
        "train",
    ),
    "bench": (["bench", "127.0.0.1:9"], "bench"),
    "tune": (["tune", "plan.yaml"], "bench"),
}


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_names_the_extra_that_it_needs(command: str, tmp_path: Path) -> None:
    arguments, extra = NEEDS[command]
    done = light(*arguments, folder=tmp_path, DEVICE="cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"atelier: \w+ is not installed: pip install 'atelier\[{extra}\]'", line
    ), line


def installed_with(names: set[str]) -> set[str]:
    """These distributions and all that pip installs with them, extras that they ask for too."""
    found: set[tuple[str, str]] = set()
    pending = {(name, "") for name in names}
    while pending:
        name, extra = pending.pop()
        found.add((name, extra))
        with suppress(metadata.PackageNotFoundError):  # of another platform
            for line in metadata.requires(name) or []:
                wanted = Requirement(line)
                if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                    brought = {(distribution(wanted.name), one) for one in ("", *wanted.extras)}
                    pending |= brought - found
    return {name for name, _ in found}


ALONE = {
    "mcp": "import atelier.agents.running, atelier.agents.s3_store, atelier.protocols.http.remote",
    "studio": (
        "import atelier.cli.studio as command\n"
        "command.studio_app([command.EndpointClient('http://pictures:8080')], 1)"
    ),
}


@pytest.mark.parametrize("extra", ALONE)
def test_a_client_of_the_apis_needs_its_own_extra_alone(extra: str, tmp_path: Path) -> None:
    own = installed_with(declared(extra))
    others = [
        name
        for names in MODULES.values()
        for name in names
        if name in INSTALLED and not distributions(name) & own
    ]
    assert {"torch", "transformers", "kserve"} <= set(others)
    program = WITHOUT_EXTRAS.replace(repr(BLOCKED), repr(sorted(others)))
    program = program.partition("from atelier")[0] + f"{ALONE[extra]}\nprint('imported')"
    paths = {"PYTHONPATH": str(ROOT / "runtime")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | paths,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "imported\n", done.stderr


def test_the_extra_bench_brings_all_that_measuring_imports() -> None:
    rooms = [name for name in IMPORTED if name.startswith(("atelier.bench", "atelier.tune"))]
    used = {module for name in rooms for module in IMPORTED[name]}
    assert not [name for name in used if not distributions(name) & declared("bench")]


def test_a_missing_module_that_no_extra_brings_is_a_traceback(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['rich.table'] = None\nfrom atelier.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "settings"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "runtime")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" in done.stderr
