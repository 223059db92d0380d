"""The caller's own `load_model`: how it is named, called and identified."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.job_spec.model import ModelSection
from pipeline.models.load_function import call_function, check_function, function_name, identify_function
from pipeline.models.value_hash import hash_value

SECTION = ModelSection(weights="untrained")


def with_level(level: object) -> Callable[[], object]:
    def load() -> object:
        return level

    return load


def takes_it(section: ModelSection) -> str:
    return section.weights


def takes_it_by_name(section: object = None) -> object:
    return section


def takes_options(level: float = 0.6) -> float:
    return level


def needs_two(section: object, level: float) -> object:
    return section, level


def fails() -> None:
    raise RuntimeError("no licence")


def leaves(section: object) -> None:
    sys.exit(3)


@dataclass
class Loader:
    level: float

    def __call__(self, section: ModelSection) -> tuple[str, float]:
        return section.weights, self.level


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (takes_it, "untrained"),
        (takes_it_by_name, SECTION),
        (takes_options, 0.6),
        (with_level(3), 3),
        (partial(takes_options, level=0.7), 0.7),
        (partial(needs_two, level=2.0), (SECTION, 2.0)),
        (Loader(0.5), ("untrained", 0.5)),
        (Loader, None),
    ],
)
def test_it_gets_the_section_if_its_first_parameter_wants_a_value(function: Any, expected: object) -> None:
    check_function(function)
    found = call_function(function, SECTION)
    assert found == expected or isinstance(found, Loader)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (3, "^load_model is of type int, which cannot be called; give a function that returns the model"),
        (needs_two, r"test_load_function:needs_two\) cannot be called: missing a required argument: 'level'; "),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_begins(function: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        identify_function(function, SECTION)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (fails, r":fails\) raised RuntimeError: no licence, in .*test_load_function.py, line \d+\.$"),
        (leaves, r":leaves\) raised SystemExit: 3 \(which ends a program\), in "),
    ],
)
def test_what_it_raises_is_one_sentence(function: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        call_function(function, SECTION)


def test_a_full_card_may_have_room_in_another_worker() -> None:
    def load() -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        call_function(load, SECTION)


def test_its_name_is_the_function_s_the_partial_s_or_the_class_s() -> None:
    assert function_name(takes_it).endswith("test_load_function:takes_it")
    assert function_name(partial(partial(takes_it), 1)).endswith(":takes_it")
    assert function_name(with_level(1)).endswith(":with_level.<locals>.load")
    assert function_name(Loader(1)).endswith(":Loader")


def test_two_functions_have_two_identities_and_the_same_one_has_one() -> None:
    def of(function: Any, **model: Any) -> dict[str, Any]:
        section = SECTION.model_copy(update=model)
        return identify_function(function, section)[1].to_dict()

    assert of(with_level(0.6)) == of(with_level(0.6))
    assert of(with_level(0.6)) != of(with_level(0.9))
    assert of(takes_it)["preset"] != of(takes_options)["preset"]
    assert of(takes_it)["trained"] is False
    assert of(takes_options)["trained"] is True
    # What it is not given does not change its model; thresholds do.
    assert of(takes_options) == of(takes_options, weights="demo") != of(takes_options, score_threshold=0.5)
    assert of(takes_it) != of(takes_it, weights="demo")


def test_an_attribute_names_what_values_cannot() -> None:
    first, second = with_level(object()), with_level(threading.Lock())
    for function in (first, second):
        function.identity = "v1"  # type: ignore[attr-defined]
    assert identify_function(first, SECTION)[1] == identify_function(second, SECTION)[1]
    second.identity = "v2"  # type: ignore[attr-defined]
    assert identify_function(first, SECTION)[1] != identify_function(second, SECTION)[1]


VALUES = [
    None, 0, 1, True, 1.0, "a", b"a", Path("a"), (1,), [1], {1}, {"a": 1}, {"a": 2}, torch.zeros(2), torch.zeros(1, 2),
    torch.ones(2), torch.tensor(1.0, dtype=torch.bfloat16), np.zeros(2), np.zeros(2, np.int64),
    np.array(["a", None], dtype=object), Loader(1), Loader(2), Loader, takes_it, partial(takes_it, 1), torch.nn,
    len, Loader(1).__call__, lambda: 1,
    lambda: 2,
]  # fmt: skip


def test_different_values_have_different_hashes() -> None:
    assert len({hash_value(value) for value in VALUES}) == len(VALUES)


def test_objects_that_hold_each_other_have_one_too() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert hash_value(ring) == hash_value(ring)


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import torch, re
from pipeline.models.value_hash import hash_value
import own
torch.manual_seed(0)
def load(): return own.Model(level, names)
class Kept:
    size = 3
    def __init__(self):
        self.names, self.net, self.of = {{"a", "b", "cc", "d"}}, torch.nn.Linear(2, 3), re.compile("x")
level, names = {level}, {{"x", "y", "zz"}}
def make(kept):
    return lambda: (kept, load)
print(hash_value(make(Kept())), hash_value(own.make({level})), hash_value(own.Model))
"""
OWN = """
class Model:
    def __init__(self, level, names): self.level = level
def make(level):
    def load(section): return Model(level, ())
    return load
"""


def test_another_process_with_the_same_code_has_the_same_hash(tmp_path: Path) -> None:
    def hashes(level: float, own: str = OWN) -> list[str]:
        (tmp_path / "own.py").write_text(own)
        text = SCRIPT.format(folder=str(tmp_path), level=level)
        # Without a file, as in a notebook.
        done = subprocess.run([sys.executable, "-B", "-c", text], capture_output=True, text=True, check=True)
        return done.stdout.split()

    first = hashes(0.6)
    assert hashes(0.6) == first
    assert [one == other for one, other in zip(hashes(0.7), first, strict=True)] == [False, False, True]
    changed = hashes(0.6, OWN.replace("= level", "= -level"))
    assert [one == other for one, other in zip(changed, first, strict=True)] == [False, False, False]
