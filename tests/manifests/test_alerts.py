"""Every alert fires for what it is about, and has a page that says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendering import ROOT, Object, needs_kubectl, objects, of_kind

pytestmark = needs_kubectl

CASES = Path(__file__).with_name("alerts.yaml")
RUNBOOKS = ROOT / "docs/runbooks"


def rules() -> Object:
    """The groups of the PrometheusRule, which are a rule file of Prometheus."""
    return of_kind(objects("overlays/sdxl-production"), "PrometheusRule")[0]["spec"]


def alerts() -> dict[str, Object]:
    return {rule["alert"]: rule for group in rules()["groups"] for rule in group["rules"]}


@pytest.mark.skipif(
    not shutil.which("promtool"),
    reason="promtool is not here: make tools installs Debian's",
)
def test_every_alert_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules()))
    cases = yaml.safe_load(CASES.read_text())
    for test in cases["tests"]:
        for check in test["alert_rule_test"]:
            for expected in check["exp_alerts"]:
                expected["exp_annotations"] = said(check["alertname"], expected["exp_labels"])
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    command = ["promtool", "test", "rules", "cases.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


VALUES = {
    "AtelierFailing": "10%",
    "AtelierQueueWait": "1m 30s",
    "AtelierOutOfMemory": "15",
    "AtelierSlowLoad": "8m 10s",
}
"""What stands for `$value` in the annotations of the cases."""


def said(alert: str, labels: Object) -> Object:
    """The alert's annotations with the labels and the value of a case written in."""
    written = {}
    for name, text in alerts()[alert]["annotations"].items():
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        written[name] = re.sub(r"\{\{ \$value \| \w+ \}\}", VALUES.get(alert, ""), text)
    return written


def test_every_alert_has_its_cases() -> None:
    """One time at which it fires, and one at which it or a neighbour is silent."""
    tested = {
        check["alertname"]
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for check in test["alert_rule_test"]
        if check["exp_alerts"]
    }
    assert tested == alerts().keys()


def test_every_alert_has_its_page_and_every_page_its_alert() -> None:
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_page"] == f"docs/runbooks/{name}.md"
        page = (RUNBOOKS / f"{name}.md").read_text()
        assert page.startswith(f"# {name}\n")
        headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
        assert headings == ["What it means", "What to look at", "What to do"]
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == alerts().keys()
