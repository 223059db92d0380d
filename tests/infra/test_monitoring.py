"""Rules and dashboard use metrics and labels that the code exports."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from pipeline.telemetry import METRICS, exported_names
from tests.support.paths import ROOT

MONITORING = ROOT / "infra" / "monitoring"
LABELS = {metric.exported(name): {"run", *metric.labels} for name, metric in METRICS.items()}
PROMTOOL = os.environ.get("HTC_PROMTOOL") or shutil.which("promtool")


def expressions(tree: Any) -> list[str]:
    """Yield every `expr` in a tree of rules or panels."""
    if isinstance(tree, list):
        return [found for each in tree for found in expressions(each)]
    if not isinstance(tree, dict):
        return []
    own = [tree["expr"]] if isinstance(tree.get("expr"), str) else []
    return own + [found for each in tree.values() for found in expressions(each)]


def rules() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((MONITORING / "rules.yml").read_text())
    return loaded


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return loaded


def recorded() -> set[str]:
    return {rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule}


def all_expressions() -> list[str]:
    asked = [
        variable["query"]["query"] for variable in dashboard()["templating"]["list"] if variable["type"] == "query"
    ]
    return expressions(rules()) + expressions(dashboard()) + asked


def test_metrics_in_rules_and_dashboard_are_those_exported() -> None:
    asked = set(re.findall(r"\bray_htc_\w+", "\n".join(all_expressions())))
    assert asked - exported_names() == set()
    assert exported_names() - asked == set()


def test_the_documentation_names_every_metric_and_its_labels() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = dict(re.findall(r"^\| `(ray_htc_\w+)` \|([^|]*)\|", text, re.MULTILINE))
    assert {name: set(re.findall(r"`(\w+)`", labels)) | {"run"} for name, labels in rows.items()} == LABELS


def test_recorded_names_are_those_of_the_rules() -> None:
    asked = set(re.findall(r"\bhtc:[\w:]+", "\n".join(all_expressions())))
    assert asked <= recorded()


def test_labels_are_those_of_the_metrics() -> None:
    matched = [found for each in all_expressions() for found in re.findall(r"(ray_htc_\w+)\{([^}]*)\}", each)]
    assert matched
    for metric, matchers in matched:
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= LABELS[metric], (metric, matchers)
    for expression in expressions(rules()) + expressions(dashboard()):
        named = set(re.findall(r"\bray_htc_\w+", expression))
        wanted = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
        if named:
            assert wanted <= set.union(*(LABELS[metric] for metric in named)), expression


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]
    names = {alert["alert"] for alert in alerts}
    assert names >= {"HtcRunStalled", "HtcFailureRate", "HtcStoreSlow", "HtcWorkersDie", "HtcNightMissed"}
    assert all(set(alert["annotations"]) == {"summary", "what_to_do"} for alert in alerts)
    tested = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fired = {rule["alertname"] for test in tested for rule in test["alert_rule_test"] if rule.get("exp_alerts")}
    assert fired == names


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & own, panel["title"]
        cells |= own


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on this machine (Debian's package prometheus has it)")
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")],
)
def test_prometheus_accepts_the_rules_and_fires_as_tested(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
