"""Which source files beside a module it imports: a model in several files of one folder is the usual case.

Imports are read from the source and not from `sys.modules`, so that the driver, a plan and the workers find the same
files, whatever they have imported before.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

# Lines rather than syntax trees, which take seconds for some hundred files. One in a docstring hashes a file too many.
_IMPORT = re.compile(
    r"(?:^|[:;])[ \t]*(?:from[ \t]+(?P<module>\w+)[\w.]*[ \t]+import\b|import[ \t]+(?P<names>[\w., \t]+))", re.MULTILINE
)
# This program's packages are no part of a model, also where a model is developed beside them.
_OUR_OWN = {"htc_batch", "htc_model", "jobs", "pipeline"}
_MOST_FILES = 2000


def with_neighbours(files: Sequence[Path]) -> list[Path]:
    """Return source files, and those that they import from the folder of the module or package that they are.

    Args:
        files: of one module, or all of one package.

    Returns:
        The files first, then the others by name; what those import in turn is among them. An import that the source
        does not spell out (importlib) is not found.
    """
    if not files:
        return []
    folder = _folder_of(files)
    known = {file.resolve() for file in files}
    found: list[Path] = []
    queue = list(files)
    # Each package is listed once, however many files import it.
    seen: set[str] = set()
    while queue:
        names = _imported(queue.pop()) - seen
        seen |= names
        new = [each for name in sorted(names) for each in _files_of(folder, name) if each.resolve() not in known]
        known.update(each.resolve() for each in new)
        found += new
        queue += new
    return [*files, *sorted(found)]


def _folder_of(files: Sequence[Path]) -> Path:
    folder = min((file.parent for file in files), key=lambda each: len(each.parts))
    # Of a package, the folder that it lies in.
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        folder = folder.parent
    return folder


def _imported(file: Path) -> set[str]:
    """Return the topmost names that a file imports."""
    names: set[str] = set()
    for match in _IMPORT.finditer(file.read_text("utf-8", errors="replace")):
        listed = [match["module"]] if match["module"] else match["names"].split(",")
        names.update(each.strip().partition(" ")[0].partition(".")[0] for each in listed)
    return {name for name in names if name.isidentifier() and name not in _OUR_OWN}


def _files_of(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_dir():
        return sorted(itertools.islice((folder / name).rglob("*.py"), _MOST_FILES))
    file = folder / f"{name}.py"
    return [file] if file.is_file() else []
