"""Bands and ranges of values in the spec: lists in YAML, numbers with commas on the command line."""

from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.inputs.formats.bands import AS_STORED, BandRule, rule_of
from pipeline.job_spec.job import JobSpec, load_spec

BASE = {"input.uri": "/in", "output.uri": "/out"}


def spec_of(**values: object) -> JobSpec:
    return load_spec(None, BASE | {f"input.{name}": value for name, value in values.items()})


def test_lists_and_texts_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("input: {bands: [4, 3, 2], value_range: [0, 3000]}\n")
    written = load_spec(tmp_path / "a.yaml", BASE)
    typed = spec_of(bands="4,3, 2", value_range="0,3e3")
    assert written.input == typed.input
    assert rule_of(typed.input.model_dump()) == BandRule((4, 3, 2), (0.0, 3000.0))
    assert rule_of(typed.to_dict()["input"]) == BandRule((4, 3, 2), (0.0, 3000.0))


def test_they_are_of_a_runs_identity_where_they_are_given() -> None:
    plain = spec_of().identity()
    assert not {"input.bands", "input.value_range"} & set(plain)
    assert spec_of(bands="3,2,1", value_range="0,1").identity() == plain | {
        "input.bands": [3, 2, 1],
        "input.value_range": [0.0, 1.0],
    }


def test_runs_of_earlier_releases_have_neither() -> None:
    assert rule_of({"uri": "/in"}) == AS_STORED


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bands": "4,3"}, "three whole numbers"),
        ({"bands": "4,3,2,1"}, "three whole numbers"),
        ({"bands": "0,1,2"}, "three whole numbers"),
        ({"bands": "nir"}, "three whole numbers"),
        ({"value_range": "5"}, "two numbers"),
        ({"value_range": "a,b"}, "two numbers"),
        ({"value_range": "0,nan"}, "two numbers"),
        ({"value_range": "9,1"}, "must be smaller"),
        ({"value_range": "1,1"}, "must be smaller"),
    ],
)
def test_what_is_neither_is_named(values: dict[str, str], words: str) -> None:
    with pytest.raises(SpecError, match=rf"input\.{next(iter(values))}.*{words}"):
        spec_of(**values)
