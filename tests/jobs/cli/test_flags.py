"""Flags of all commands, by introspection: one name means one thing."""

import re
from collections import defaultdict
from typing import Any

import pytest

from jobs.cli.common_flags import RENAMED, TEXTS, commands_of, long_name, rename_former
from jobs.cli.program import load_program
from tests.support.htc import run_htc
from tests.support.programs.flag_table import PAGE, with_table

_DEFAULT = re.compile(r"\s*\[default: [^]]*\]")


def _flags() -> list[tuple[tuple[str, ...], Any]]:
    return [
        (path, flag)
        for path, command in commands_of(load_program())
        for flag in command.params
        if flag.param_type_name == "option"
    ]


def test_one_name_has_one_text_and_one_kind_of_value() -> None:
    seen: dict[str, dict[tuple[str, object, tuple[str, ...]], list[str]]] = defaultdict(lambda: defaultdict(list))
    for path, flag in _flags():
        name = long_name(flag)
        text = _DEFAULT.sub("", flag.help or "")
        text = TEXTS[name].help if name in TEXTS and text.startswith(TEXTS[name].help) else text
        value = flag.metavar or ("switch" if flag.is_flag else "choice")
        seen[name][text, value, tuple(sorted([*flag.opts, *flag.secondary_opts]))].append(" ".join(path))
    several = {name: dict(kinds) for name, kinds in seen.items() if len(kinds) > 1}
    assert not several, "give the flag another name, or its common text in jobs/cli/common_flags.py"


def test_no_two_names_mean_one_thing() -> None:
    names: dict[str, set[str]] = defaultdict(set)
    for _, flag in _flags():
        names[_DEFAULT.sub("", flag.help or "")].add(long_name(flag))
    assert {text: found for text, found in names.items() if len(found) > 1 and text} == {}


def test_texts_are_of_flags_that_exist() -> None:
    assert TEXTS.keys() <= {long_name(flag) for _, flag in _flags()}


def test_common_texts_speak_of_no_single_command() -> None:
    """What holds for some commands only, these add themselves; two texts compare commands."""
    speaking = {name for name, text in TEXTS.items() if re.search(r"`(?!htc )\w+`", text.help)}
    assert speaking == {"--deadline", "--wait"}
    helps = {" ".join(path): {long_name(flag): flag.help for p, flag in _flags() if p == path} for path, _ in _flags()}
    assert "incremental" in helps["run"]["--where"]
    assert "incremental" not in helps["export"]["--where"]
    assert "begun" not in helps["export"]["--run"]
    assert "index" not in helps["diff"]["--fail-over"]


def test_every_flag_explains_itself() -> None:
    assert [path for path, flag in _flags() if not flag.help] == []


@pytest.mark.parametrize(("argument", "flag"), [("INPUT", "--input"), ("OUTPUT", "--output"), ("SPEC", "--spec")])
def test_arguments_are_flags_as_well(argument: str, flag: str) -> None:
    lacking = []
    for path, command in commands_of(load_program()):
        taken = {long_name(each) for each in command.params if each.param_type_name == "option"}
        arguments = {each.metavar for each in command.params if each.param_type_name == "argument"}
        if argument in arguments and flag not in taken:
            lacking.append(path)
    assert lacking == []


def test_former_names_are_gone_and_lead_to_new_ones(capsys: pytest.CaptureFixture[str]) -> None:
    taken = defaultdict(set)
    for path, flag in _flags():
        taken[path].add(long_name(flag))
    for path, flags in RENAMED.items():
        for old, new in flags.items():
            assert old not in taken[path]
            assert new in taken[path]
            assert rename_former([*path, "a", f"{old}=1", old, "2", "--", old]) == [
                *path,
                "a",
                f"{new}=1",
                new,
                "2",
                "--",
                old,
            ]
            said = capsys.readouterr().err
            assert old in said
            assert new in said


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run: python -m tests.support.programs.flag_table --write"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["runs", "a", "--output", "b"], "OUTPUT is given twice, as a and with --output b"),
        (["plan", "a", "o", "--input", "b"], "INPUT is given twice, as a and with --input b"),
        (["runs"], "The argument OUTPUT is missing; give it, or --output"),
        (["submit", "a.yaml", "--spec", "b.yaml"], "SPEC is given twice"),
    ],
)
def test_given_twice_or_not_at_all(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    code, _, said = run_htc(capsys, *words)
    assert code == 2
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--input", "{in}", "--output", "{out}"],
        ["plan", "{in}", "--output", "{out}"],
        ["plan", "{out}", "--input", "{in}"],
        ["plan", "{in}", "{out}", "--input", "{in}", "--output", "{out}"],
    ],
)
def test_input_and_output_by_flag(capsys: pytest.CaptureFixture[str], tmp_path: Any, words: list[str]) -> None:
    places = {"{in}": str(tmp_path / "in"), "{out}": str(tmp_path / "out")}
    code, _, said = run_htc(capsys, *(places.get(word, word) for word in words), "--no-model")
    assert code == 2
    assert said == f"The input {tmp_path / 'in'} does not exist.\n"


def test_a_query_takes_its_output_by_flag_and_its_file_by_the_former_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    missing = str(tmp_path / "none")
    code, _, said = run_htc(capsys, "query", "--output", missing, "SELECT 1")
    assert (code, "holds no run" in said) == (2, True)
    code, _, said = run_htc(capsys, "query", missing, "SELECT 1", "--output", str(tmp_path / "file.csv"))
    assert "--output FILE is called --to now" in said
    assert code == 2
