"""Rules and dashboard use metrics and labels that the program really exports."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cli.program import main
from jobs.monitoring.metrics import METRICS as OUTCOME_METRICS
from jobs.monitoring.rules_check import find_unknown_metrics, known_metrics
from pipeline.telemetry import METRICS, exported_names
from tests.support.manifest_schemas import check_manifest
from tests.support.paths import ROOT

MONITORING = ROOT / "infra" / "monitoring"
# That these are what is exported: tests/pipeline/test_telemetry.py and tests/jobs/monitoring/test_exporter.py, which
# scrape a run and an exporter.
RAY_LABELS = {metric.exported(name): {"run", *metric.labels} for name, metric in METRICS.items()}
LABELS = RAY_LABELS | {name: set(metric.labels) for name, metric in OUTCOME_METRICS.items()}
# Prometheus adds these to every series.
TARGET_LABELS = {"job", "instance"}
METRIC = r"(?<![\w:])(?:ray_)?htc_\w+"
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
    asked = set(re.findall(METRIC, "\n".join(all_expressions())))
    assert asked - known_metrics() == set()
    # What nothing shows and nothing watches need not be exported.
    assert known_metrics() - asked == {
        "htc_schedule_last_success_timestamp_seconds",
        "htc_schedule_paused",
    }
    assert exported_names() <= known_metrics()


def test_an_alert_for_a_metric_that_is_not_exported_is_named() -> None:
    assert list(find_unknown_metrics([rules(), dashboard()])) == []
    misspelt = yaml.safe_load((MONITORING / "rules.yml").read_text().replace("htc_last_run_state", "htc_run_state"))
    found = list(find_unknown_metrics(misspelt))
    assert {sentence.partition(";")[0] for sentence in found} == {
        f"the alert {name} asks for htc_run_state"
        for name in ("HtcRunFailed", "HtcRunOverErrorBudget", "HtcRunIncomplete", "HtcDriverGone", "HtcRunOverdue")
    }


def test_the_documentation_names_every_metric_and_its_labels() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = dict(re.findall(r"^\| `((?:ray_)?htc_\w+)` \|([^|]*)\|", text, re.MULTILINE))
    named = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()}
    assert {name: labels | ({"run"} if name in RAY_LABELS else set()) for name, labels in named.items()} == LABELS


def test_recorded_names_are_those_of_the_rules() -> None:
    asked = set(re.findall(r"\bhtc:[\w:]+", "\n".join(all_expressions())))
    assert asked <= recorded()


def test_labels_are_those_of_the_metrics() -> None:
    matched = [found for each in all_expressions() for found in re.findall(rf"({METRIC})\{{([^}}]*)\}}", each)]
    assert matched
    for metric, matchers in matched:
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= LABELS[metric], (metric, matchers)
    for expression in expressions(rules()) + expressions(dashboard()):
        named = set(re.findall(METRIC, expression))
        wanted = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
        if named:
            assert wanted <= TARGET_LABELS.union(*(LABELS[metric] for metric in named)), expression


def test_every_alert_says_what_to_do() -> None:
    alerts = [rule for group in rules()["groups"] for rule in group["rules"] if "alert" in rule]
    names = {alert["alert"] for alert in alerts}
    assert names >= {"HtcRunStalled", "HtcFailureRate", "HtcStoreSlow", "HtcWorkersDie", "HtcNightMissed"}
    assert all(set(alert["annotations"]) == {"summary", "what_to_do"} for alert in alerts)
    tested = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    fired = {rule["alertname"] for test in tested for rule in test["alert_rule_test"] if rule.get("exp_alerts")}
    assert fired == names
    # Each has its row in the page for the operator who is woken.
    page = (ROOT / "docs" / "monitoring.md").read_text()
    woken = page[page.index("## Woken at 3 am") :]
    cells = re.findall(r"^\| ((?:`Htc\w+`(?:, )?)+) \|", woken, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"\w+", cell)} == names


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


def test_the_exporter_in_kubernetes_serves_with_flags_that_exist(tmp_path: Path) -> None:
    deployment, monitor = yaml.safe_load_all((MONITORING / "exporter.yaml").read_text())
    check_manifest(deployment)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "htc"
    listen = arguments[arguments.index("--listen") + 1]
    (port,) = container["ports"]
    assert listen == f"0.0.0.0:{port['containerPort']}"
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert monitor["spec"]["selector"] == deployment["spec"]["selector"]
    # The same command, printing instead of serving, of an output that is not there.
    given = [str(tmp_path) if word.startswith("s3://") else word for word in arguments[: arguments.index("--listen")]]
    with pytest.raises(SystemExit) as left:
        main(given)
    assert left.value.code == 1
