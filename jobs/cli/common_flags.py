"""What flags of one name have in common in all commands: their text, and the names that they had before."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

from jobs.terminal.console import say


class Text(NamedTuple):
    """How a flag is shown in every command that has it; commands add their own default.

    metavar: None for a switch.
    """

    metavar: str | None
    help: str


# Every flag that several commands take and that would read differently otherwise. A text is true for each of them: what
# is so for some only, they add themselves.
TEXTS: Mapping[str, Text] = {
    "--address": Text("URL", "The Ray cluster's dashboard."),
    "--batch-size": Text("N", "Images in one batch of a worker."),
    "--class": Text("NAME", "This class only; repeatable."),
    "--cron": Text("EXPR", 'Minute, hour, day, month, weekday: "30 2 * * *"; or @daily.'),
    "--deadline": Text(
        "TIME",
        'When the run must have ended: "6h" after its start or its scheduled time; `run` and `plan` also take a '
        'time, "06:30 Europe/Berlin", or a date with its time.',
    ),
    "--env": Text(
        "NAME[=VALUE]",
        "Set for driver and workers, by default to its value here; repeatable. Not for secrets: others can read it.",
    ),
    "--fail-over": Text("F", "Exit with 1 when more than this has changed"),
    "--file": Text("FILE", "A schedule in YAML."),
    "--format": Text(None, "The format"),
    "--iceberg": Text("CATALOG", "The Iceberg catalog: sqlite:///PATH, or one of pyiceberg's configuration."),
    "--images": Text("DIR", "Folder of the images."),
    "--input": Text("INPUT", "The input, as the argument INPUT of `htc run`."),
    "--json": Text(None, "Write JSON to stdout instead of text."),
    "--model": Text("PRESET", "Network preset."),
    "--min-score": Text("F", "Only instances that score at least F."),
    "--once": Text(None, "Do it once and end: run what is due and wait for it, or show the view as plain text."),
    "--output": Text("OUTPUT", "The output, as the argument OUTPUT of `htc run`; when training, a folder."),
    "--panoptic": Text(None, "Panoptic segments, things and stuff"),
    "--precision": Text("auto|fp32|bf16|fp16", "Arithmetic of the network; fp16 is for training only."),
    "--run": Text("NAME", "The run of this name."),
    "--runtime-env": Text(
        "code|image|pip",
        "code: upload this htc-batch; image: the cluster's image has it; pip: Ray installs the libraries too.",
    ),
    "--seed": Text("N", "Random seed."),
    "--semantic": Text(None, "Semantic maps"),
    "--spec": Text("FILE", "Spec (YAML); flags override it."),
    "--strict": Text(None, "Refuse flawed annotations instead of reporting and skipping them."),
    "--time-zone": Text("ZONE", "Time zone of --cron, such as Europe/Berlin."),
    "--to": Text("PATH", "Write there"),
    "--truth": Text("FILE", "The truth: COCO annotations, a path or URI."),
    "--val-share": Text("F", "Hold out this share of the images, each class by its share."),
    "--wait": Text(None, "Wait for the job's end; `submit` then exits as `htc run` would."),
    "--weights": Text("URI", "demo (bundled), coco (published), untrained, or a .pth or .safetensors file."),
    "--where": Text("SQL", "A choice in SQL"),
    "--workers": Text("N|MIN:MAX", "Workers: a number, or MIN:MAX as there is room for; when training, a number."),
}

# By command: flags that had another name, which still works for one release (until 0.4) and says the new one.
RENAMED: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("run",): {"--column": "--image-column"},
    ("plan",): {"--column": "--image-column"},
    ("submit",): {"--column": "--image-column"},
    ("prune",): {"--namespace": "--catalog-namespace"},
    ("publish",): {"--namespace": "--catalog-namespace"},
    ("schedule", "history"): {"--limit": "--last"},
}

_DEFAULT = re.compile(r"\s*(\[default: [^]]*\])")


def commands_of(program: TyperGroup) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """Yield every command with the words that name it."""
    for name, command in program.commands.items():
        if isinstance(command, TyperGroup):
            yield from (((name, *path), inner) for path, inner in commands_of(command))
        elif isinstance(command, TyperCommand):
            yield (name,), command


def long_name(flag: Any) -> str:
    """Return a flag's name with its dashes, such as "--wait"."""
    return str(next((each for each in flag.opts if each.startswith("--")), flag.opts[0]))


def share_texts(program: TyperGroup) -> None:
    """Give every flag of `TEXTS` its text, followed by the default that the command names.

    A command may add more: by a text of its own that begins with the common one.
    """
    for _, command in commands_of(program):
        for flag in command.params:
            text = TEXTS.get(long_name(flag)) if flag.param_type_name == "option" else None
            if text is not None:
                own = getattr(flag, "help", None) or ""
                default = _DEFAULT.search(own)
                if not own.startswith(text.help):
                    flag.help = f"{text.help} {default[1]}" if default else text.help  # type: ignore[attr-defined]
                flag.metavar = text.metavar or flag.metavar


def rename_former(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with former names of flags replaced, and say what they are called now."""
    renamed = next((flags for path, flags in RENAMED.items() if tuple(words[: len(path)]) == path), {})
    result: list[str] = []
    for place, word in enumerate(words):
        if word == "--":
            return [*result, *words[place:]]
        name, is_given, value = word.partition("=")
        new = renamed.get(name)
        if new is not None:
            say(f"{name} is called {new} now; the old name works until release 0.4.")
        result.append(word if new is None else new + (f"={value}" if is_given else ""))
    return result
