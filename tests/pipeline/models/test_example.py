"""The page's example is the file in examples/, and keeps to the protocol."""

import re

from pipeline.models import check_model
from tests.support.paths import ROOT


def test_the_page_shows_the_file() -> None:
    page = (ROOT / "docs" / "models" / "any_model.md").read_text()
    first = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert first is not None
    assert first[1] == (ROOT / "examples" / "bright_regions.py").read_text()


def test_the_example_passes_the_conformance_test() -> None:
    names: dict[str, object] = {}
    exec((ROOT / "examples" / "bright_regions.py").read_text(), names)
    load = names["load"]
    assert callable(load)
    report = check_model(load(0.6), device="cpu")
    assert report.failures == []
    assert report.model == "bright-regions"
