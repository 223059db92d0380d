"""`htc metrics --check-rules`: whether rules and dashboards ask only for metrics that this program exports.

Prometheus accepts a rule for a metric that does not exist: the alert then never fires.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.monitoring.metrics import METRICS
from jobs.terminal.console import write_line
from pipeline.errors import SpecError
from pipeline.telemetry import exported_names
from pipeline.text import count_of

_NAME = re.compile(r"(?<![\w:])(?:ray_)?htc_\w+")


def check_rules(path: Path) -> int:
    """Check a file of Prometheus' rules (YAML) or a dashboard of Grafana (JSON), and write the result.

    Returns:
        The exit code, 0.

    Raises:
        SpecError: the file cannot be read, or asks for a metric that is not exported; each is named.
    """
    tree = _load(path)
    asked = list(find_expressions(tree))
    unknown = list(find_unknown_metrics(tree))
    if unknown:
        raise SpecError("\n".join([f"{path} asks for metrics that htc does not export:", *(f"- {u}" for u in unknown)]))
    write_line(f"{path}: the metrics of {count_of(len(asked), 'expression')} are all exported.")
    return 0


def known_metrics() -> frozenset[str]:
    """Return the names of all metrics that are exported: by `htc metrics`, and by a run through Ray."""
    return frozenset(METRICS) | exported_names()


def find_unknown_metrics(tree: Any, known: frozenset[str] | None = None) -> Iterator[str]:
    """Yield in a sentence each expression of rules or panels that names a metric of htc that is not exported.

    Args:
        tree: the YAML or JSON. known: the exported names; `known_metrics()` when None.
    """
    names = known_metrics() if known is None else known
    for place, expression in find_expressions(tree):
        for name in sorted(set(_NAME.findall(expression)) - names):
            nearest = difflib.get_close_matches(name, names, n=1)
            yield f"{place} asks for {name}" + (f"; did you mean {nearest[0]}?" if nearest else ".")


def find_expressions(tree: Any, place: str = "the file") -> Iterator[tuple[str, str]]:
    """Yield the PromQL expressions of a tree of rules or panels, each with the alert, record or panel it is of."""
    if isinstance(tree, list):
        for each in tree:
            yield from find_expressions(each, place)
    elif isinstance(tree, dict):
        kinds = {"alert": "the alert", "record": "the recording rule", "title": "the panel"}
        named = [f"{word} {tree[key]}" for key, word in kinds.items() if isinstance(tree.get(key), str)]
        place = named[0] if named else place
        if isinstance(tree.get("expr"), str):
            yield place, tree["expr"]
        for each in tree.values():
            yield from find_expressions(each, place)


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not valid YAML or JSON"
        raise SpecError(f"{path} cannot be read: {reason}.") from None
