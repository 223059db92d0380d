"""The code blocks of the documents: what they hold, how they are marked, and whether their commands are commands.

A block is run in a folder with photos and an output (tests/documents/conftest.py) unless a comment says otherwise, in
the line above the block, or below the page's title for all blocks of the page that have no comment of their own:

    <!-- not run: it needs a bucket -->
    <!-- run by tests/e2e/test_own_classes.py -->
    <!-- exit code: 1 -->
    <!-- setup: htc run photos/ masks/ --fresh --run second -->

    <!-- page: not run: they need a cluster -->
    <!-- page: run by tests/jobs/results/test_cookbook.py -->
"""

import copy
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jobs.cli.common_flags import RENAMED
from jobs.cli.program import load_program
from tests.support.paths import ROOT

SHELL = ("bash", "console", "sh")
RUNNABLE = (*SHELL, "python", "sql")
# What is shown, not run.
SHOWN = ("ini", "json", "text", "toml", "yaml")
# Programs that a block may start in the folder of the tests, beside htc.
HARMLESS = frozenset({"cat", "cp", "echo", "head", "ls", "mkdir", "mv", "rm", "tail", "touch", "wc"})

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--\s*(.*?)\s*-->", re.DOTALL)
_COMMENTS_ABOVE = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.DOTALL)
_SPAN = re.compile(r"`(htc(?: [^`\n]+)?)`")
# Between two commands of a line.
_SEPARATORS = frozenset({"|", "||", "&", "&&", ";", "|&"})


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    marks: the comments above it, "key: value" or "key value"; those of the page where it has none of its own.
    """

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason_not_run(self) -> str | None:
        """Why it is not run; None if it is."""
        return self._mark("not run:")

    @property
    def test(self) -> str | None:
        """The test file that runs it; None where the tests of the documents do."""
        return self._mark("run by")

    @property
    def setup(self) -> str:
        """Commands that are run before it, and not shown."""
        return self._mark("setup:") or ""

    @property
    def exit_code(self) -> int:
        """What its last command exits with."""
        return int(self._mark("exit code:") or 0)

    @property
    def is_run_here(self) -> bool:
        return self.language in RUNNABLE and self.reason_not_run is None and self.test is None

    def _mark(self, key: str) -> str | None:
        return next((mark.removeprefix(key).strip() for mark in self.marks if mark.startswith(key)), None)


KEYS = ("not run:", "run by ", "exit code:", "setup:")


def pages() -> list[Path]:
    """Return every page whose blocks count, in the order of paths."""
    tops = ("docs", "infra", "examples", "benchmarks")
    return sorted([*ROOT.glob("*.md"), *(page for top in tops for page in (ROOT / top).rglob("*.md"))])


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Return the page's blocks in order.

    Args:
        page: the page's file.
        text: its text; None reads the file.
    """
    text = page.read_text(encoding="utf-8") if text is None else text
    fences = list(_FENCE.finditer(text))
    outside = "".join(text[end:start] for end, start in _gaps(fences, len(text)))
    comments = _COMMENT.findall(outside)
    of_page = tuple(mark.removeprefix("page:").strip() for mark in comments if mark.startswith("page:"))
    blocks = []
    for fence in fences:
        above = _COMMENTS_ABOVE.search(text, 0, fence.start())
        own = tuple(mark for mark in _COMMENT.findall(above[0]) if mark.startswith(KEYS)) if above else ()
        says_whether = any(mark.startswith(("not run:", "run by ")) for mark in own)
        marks = own if says_whether else (*own, *of_page)
        line = text.count("\n", 0, fence.start()) + 1
        indent = len(fence["indent"])
        body = "".join(each[indent:] if each.strip() else each for each in fence["text"].splitlines(keepends=True))
        blocks.append(Block(page, line, fence["language"].strip().split(" ")[0], body, marks))
    return blocks


def _gaps(fences: Sequence[re.Match[str]], end: int) -> Iterator[tuple[int, int]]:
    at = 0
    for fence in fences:
        yield at, fence.start()
        at = fence.end()
    yield at, end


def commands_in(text: str, language: str = "sh") -> list[str]:
    """Return the commands of a shell block, one string each: continued lines and here-documents joined, no output."""
    commands: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if language == "console" and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ") if language == "console" else line
        while command.endswith("\\"):
            command = command[:-1] + next(lines, "").strip()
        while "<<" not in command and _has_open_quote(command) and (more := next(lines, None)) is not None:
            command += "\n" + more
        if here := re.search(r"<<-?'?(\w+)'?", command):
            for inner in lines:
                command += "\n" + inner
                if inner.strip() == here[1]:
                    break
        if command.strip() and not command.lstrip().startswith("#"):
            commands.append(command)
    return commands


def _has_open_quote(command: str) -> bool:
    try:
        words_of(command)
    except ValueError:
        return True
    return False


def words_of(command: str) -> list[str]:
    """Split a command as a shell does; a comment at its end is left out."""
    # The text of a here-document is no part of the command's line.
    line = command.partition("\n")[0] if "<<" in command else command
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def simple_commands(command: str) -> list[list[str]]:
    """Return the words of each program that the command starts, without redirections and variables set before it."""
    found: list[list[str]] = [[]]
    words = iter(words_of(command))
    for word in words:
        if word in _SEPARATORS:
            found.append([])
        elif set(word) <= set("<>&") and word:
            # `2>` is two words here.
            if found[-1] and found[-1][-1].isdigit():
                found[-1].pop()
            next(words, None)
        elif not found[-1] and re.match(r"\w+=", word):
            continue
        else:
            found[-1].append(word)
    return [each for each in found if each]


@cache
def _program() -> Any:
    return load_program()


def fault_of(words: Sequence[str], *, is_whole: bool = True) -> str:
    """Return what is wrong with a command line of htc, or "": parsed by the commands' own parsers, nothing is run.

    Args:
        words: beginning with "htc".
        is_whole: false for a mention in a sentence, which may leave arguments and flags' values out.
    """
    given = [word for word in words[1:] if "…" not in word and word != "..."]
    is_whole = is_whole and len(given) == len(words) - 1
    command, path, rest = _program(), (), given
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if is_placeholder(rest[0]):
            return ""
        if rest[0] not in command.commands:
            return f"there is no command {' '.join(['htc', *path, rest[0]])}"
        path, command, rest = (*path, rest[0]), command.commands[rest[0]], rest[1:]
    former = next((word for word in rest if word.partition("=")[0] in RENAMED.get(path, {})), None)
    fault = f"{former} has a new name" if former else _unknown_flags(command, rest)
    if fault or not is_whole or {"--help", "-h", "--version"} & set(rest):
        return fault
    return "no command is given" if hasattr(command, "commands") else _parsed(command, path, rest)


def is_placeholder(word: str) -> bool:
    """Whether a word stands for others: `htc COMMAND --help`."""
    return word.isupper()


def _unknown_flags(command: Any, words: Sequence[str]) -> str:
    known = {name for flag in command.params for name in (*flag.opts, *flag.secondary_opts)} | {"--help", "-h"}
    given = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    return next((f"htc {command.name} has no flag {name}" for name in given if name not in known), "")


def _parsed(command: Any, path: Sequence[str], words: list[str]) -> str:
    context = command.context_class(command, info_name=" ".join(["htc", *path]))
    try:
        values, left, _ = command.make_parser(context).parse_args(args=list(words))
        if left:
            return f"too many arguments: {' '.join(left)}"
        for parameter in command.params:
            value = values.get(parameter.name)
            if any(is_placeholder(each) for each in (value if isinstance(value, list | tuple) else [str(value)])):
                continue
            # The checks of its type, without what the program does with it.
            checked = copy.copy(parameter)
            checked.callback = None
            checked.process_value(context, value)
    except Exception as error:
        if hasattr(error, "format_message"):
            return str(error.format_message())
        raise
    return ""


def mentions_of(page: Path) -> list[str]:
    """Return the commands of htc that the page names in its sentences and tables, `htc status --watch`."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in _SPAN.findall(text)]
