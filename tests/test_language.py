"""The code speaks the words of docs/glossary.md."""

import io
import re
import tokenize

import pytest

from tests.support.paths import ROOT

# A word that is out of use, and what is said instead.
INSTEAD = {
    r"trunks?": "backbone",
    r"by lot": "sampled",
    r"to be had": "available",
    r"(some|no|any)body|whoever": "another process, the caller, nothing else",
    r"hopeless": "stop reason",
    r"in our (own )?words": "translated",
    r"tells?|telling": "report, state, return",
    r"stretch": "shard range",
    r"the night|a night|nights": "run, incremental run",
    r"ledger|tally|fleet": "shard queue, run totals, worker pool",
    r"bury|buried": "remove",
    r"goes on with|go on with|gone on with": "resume",
    r"housekeep\w*": "maintenance",
}
PATTERN = re.compile("|".join(rf"(?P<w{number}>\b(?:{word})\b)" for number, word in enumerate(INSTEAD)), re.IGNORECASE)


def words_in(text: str) -> list[str]:
    """What should be said otherwise in the comments, docstrings and messages of a module."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            for match in PATTERN.finditer(token.string):
                instead = list(INSTEAD.values())[int(str(match.lastgroup)[1:])]
                found.append(f"{match[0]!r} in line {token.start[0]}: say {instead}")
    return found


@pytest.mark.parametrize("package", ["htc_batch", "htc_model", "jobs", "pipeline"])
def test_no_word_is_out_of_use(package: str) -> None:
    found = {str(path.relative_to(ROOT)): words_in(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}
    assert {path: words for path, words in found.items() if words} == {}


def test_every_word_is_found() -> None:
    assert len(words_in('x = "a trunk"  # drawn by lot\n"""Somebody tells the fleet."""\n')) == 5
