"""The table of docs/flags.md, from the commands themselves: `python -m tests.support.programs.flag_table --write`."""

import re
import sys
from collections import defaultdict

from jobs.cli.common_flags import RENAMED, commands_of, long_name
from jobs.cli.program import load_program
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "flags.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of the table -->\n"
_DEFAULT = re.compile(r"\s*\[default: [^]]*\]")


def table() -> str:
    """Return the table as Markdown: each flag, its value, what it means, and the commands that take it."""
    takers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    commands = list(commands_of(load_program()))
    for path, command in commands:
        for flag in command.params:
            if flag.param_type_name == "option" and not getattr(flag, "hidden", False):
                names = ", ".join(f"`{each}`" for each in [*flag.opts, *flag.secondary_opts])
                text = _DEFAULT.sub("", getattr(flag, "help", None) or "").replace("|", "\\|")
                takers[long_name(flag), names, text].append(" ".join(path))
    rows = ["| flag | value | meaning | commands |", "|---|---|---|---|"]
    for (name, names, text), taking in sorted(takers.items()):
        flag = next(each for _, command in commands for each in command.params if long_name(each) == name)
        value = (flag.metavar or "").replace("|", "\\|")
        everywhere = len(taking) == len(commands)
        rows.append(f"| {names} | {value} | {text} | {'all' if everywhere else ', '.join(taking)} |")
    rows += ["", "| former name | name now | command |", "|---|---|---|"]
    rows += [
        f"| `{old}` | `{new}` | {' '.join(path)} |" for path, flags in RENAMED.items() for old, new in flags.items()
    ]
    return "\n".join([*rows, "| `--output FILE` | `--to FILE` | query |"]) + "\n"


def with_table(page: str) -> str:
    """Return a page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")
