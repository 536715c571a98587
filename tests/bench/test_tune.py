"""`atelier tune`: finds the best settings, survives being killed, lists what cannot start, and
writes what a server and a cluster take."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from atelier.errors import SettingsError
from atelier.settings import load_settings
from atelier.tune.goal import parse_bound
from atelier.tune.plan import TunePlan, read_plan
from atelier.tune.quality import compared
from atelier.tune.search import Search
from tests.conftest import ROOT
from tests.manifests.rendering import combine, merged_container, needs_kubectl

PLAN: dict[str, Any] = {
    "start": {"model_id": "builtin/scenes", "dtype": "bfloat16", "max_num_seqs": 1},
    "space": {
        "max_num_seqs": [1, 2, 4, 64],
        "dtype": ["bfloat16", "float32", "float16"],
    },
    "load": {"requests": 4, "warmup": 1, "output_tokens": 10, "prompt_tokens": 20},
    "goal": "output_tokens_per_s",
    "bounds": {"memory": "1GiB", "agreement": 0.9},
    "trials": 7,
    "repeats": 2,
    "final_rounds": 2,
}


def write(folder: Path, plan: dict[str, Any]) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def tune(plan: Path, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "tests.bench.faked_tune", str(plan), str(out)]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "runtime"), str(ROOT)])}
    return subprocess.Popen(
        words, cwd=ROOT, env=os.environ | paths, stdout=subprocess.PIPE, text=True
    )


def kill_after(process: subprocess.Popen[str], out: Path, trials: int, killed: int) -> None:
    """SIGKILL early in the trial that follows, once its server is started. Trials are numbered,
    those that were `killed` too."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(f"[{trials}/"):
            break
    log, ends = out / "trials" / f"{trials + killed:04}.log", time.monotonic() + 30
    while not log.exists() and time.monotonic() < ends:
        time.sleep(0.02)
    assert log.exists()
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was killed twice and went on to its end."""
    folder = tmp_path_factory.mktemp("tune")
    plan, out = write(folder, PLAN), folder / "out"
    kill_after(tune(plan, out), out, 1, 0)
    kill_after(tune(plan, out), out, 4, 1)
    process = tune(plan, out)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "goes on after 4 trials" in said
    return out


@pytest.fixture(scope="module")
def document(searched: Path) -> dict[str, Any]:
    return json.loads((searched / "tune.json").read_text())


def test_the_best_of_twelve_points_is_found_in_seven_trials(document: dict[str, Any]) -> None:
    best = document["best"]["point"]
    assert (best["max_num_seqs"], best["dtype"]) == (4, "float32")
    assert len(document["trials"]) == 7
    assert document["gain"] > 2


def test_killed_trials_are_run_again_and_counted_once(document: dict[str, Any]) -> None:
    assert document["killed"] == 2
    points = [json.dumps(one["point"]) for one in document["trials"]]
    assert len(points) == len(set(points)) == 7


def test_a_trial_that_cannot_start_is_listed_with_its_reason(document: dict[str, Any]) -> None:
    reasons = {
        (one["point"]["dtype"], one["point"]["max_num_seqs"]): one["reason"]
        for one in document["trials"]
        if one["state"] == "failed"
    }
    assert "DTYPE=float16 is not possible here" in reasons["float16", 1]
    assert reasons["bfloat16", 64].startswith("out of memory: the server ended with code 1")


def test_what_each_change_brings_is_told(document: dict[str, Any], searched: Path) -> None:
    alone = {(one["setting"], one["value"]): one for one in document["contributions"]}
    assert alone["max_num_seqs", 4]["alone"] > alone["max_num_seqs", 2]["alone"] > 1.2
    assert alone["max_num_seqs", 4]["chosen"] and not alone["max_num_seqs", 2]["chosen"]
    assert alone["dtype", "float32"]["alone"] == pytest.approx(1.4, rel=0.2)
    assert alone["dtype", "float16"]["alone"] is None
    page = (searched / "report.html").read_text()
    assert page.count("<svg") == 3 and "DTYPE=float16" in page


def test_the_final_comparison_is_against_the_start(document: dict[str, Any]) -> None:
    final = document["final"]
    assert len(final["best"]) == len(final["start"]) == 4
    assert min(final["best"]) > 2 * max(final["start"])
    verdicts = {one["metric"]: one["verdict"] for one in final["comparison"]["effects"]}
    assert verdicts["tpot"] == "b is better"


def test_the_profile_is_one_that_the_server_takes(searched: Path) -> None:
    settings = load_settings(profile=str(searched / "best.yaml"))
    assert (settings.max_num_seqs, settings.dtype) == (4, "float32")
    assert settings.model_id == "builtin/scenes"


@needs_kubectl
def test_the_component_sets_them_on_a_cluster(searched: Path, tmp_path: Path) -> None:
    copy = ROOT / "manifests" / "components" / f"tuned-{os.getpid()}"
    shutil.copytree(searched / "component", copy)
    try:
        docs = combine(tmp_path, "overlays/dev", [copy.name])
    finally:
        shutil.rmtree(copy)
    given = {one["name"]: one.get("value") for one in merged_container(docs)["env"]}
    assert (given["MAX_NUM_SEQS"], given["DTYPE"]) == ("4", "float32")
    assert given["MODEL_ID"] == "builtin/shapes"  # the overlay's own stays


def test_another_plan_does_not_go_on_with_the_search(searched: Path) -> None:
    other = TunePlan(**(PLAN | {"goal": "ttft.p95"}))
    with pytest.raises(SettingsError, match="another plan"):
        Search(other, searched)


def test_no_server_outlives_a_killed_search(searched: Path) -> None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        assert "tests.bench.fake_server" not in words, entry


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"goal": "speed"}, "'speed' is no goal"),
        ({"space": {"max_sequences": [1, 2]}}, "'max_sequences' is no setting"),
        ({"space": {"model_id": ["a", "b"]}}, "model_id cannot be searched"),
        ({"space": {"max_num_seqs": {"low": 4, "high": 2}}}, "low 4 must be less than high 2"),
        ({"space": {"max_num_seqs": {"low": 4, "high": 8}}}, "the start, 1, is outside"),
        ({"start": {"hf_token": "x"}}, "hf_token is secret: set HF_TOKEN"),
        ({"bounds": {"memory": "20"}}, "write a size such as 20GiB"),
        ({"bounds": {"ttft.p95": 3}}, "no duration"),
        ({"goal": "goodput_per_s"}, "needs slo"),
        ({"load": {"users": 0}}, "users=0"),
        ({"trails": 3}, "trails=3"),
    ],
)
def test_a_bad_plan_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)):
        read_plan(write(tmp_path, PLAN | change))


def test_options_of_a_child_engine_are_set_as_one_variable() -> None:
    space = {"--speculative-config": ["", '{"method": "ngram"}'], "max_num_seqs": [1, 2]}
    plan = TunePlan(**(PLAN | {"start": {"engine_args": "--seed=1"}, "space": space}))
    point = {"--speculative-config": '{"method": "ngram"}', "max_num_seqs": None}
    wanted = '--seed=1 --speculative-config=\'{"method": "ngram"}\''
    assert plan.settings_of(point) == {"engine_args": wanted}


def test_bounds_have_units() -> None:
    assert parse_bound("memory", "1.5GiB") == 1.5 * 2**30
    assert parse_bound("ttft.p95", "500ms") == 0.5


def test_quality_of_texts_and_pictures() -> None:
    assert compared(["abcd", "same"], ["abxx", "same"], "text") == {"agreement": 0.75}
    found = compared([picture(100), picture(7)], [picture(110), picture(7)], "pictures")
    assert found["psnr"] == pytest.approx(28.13, abs=0.01)  # 20 log10(255 / 10)


def picture(grey: int) -> str:
    import base64
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
