"""Packages that export names: complete, light to import, and the only imports that documents show."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

from tests.support.paths import ROOT

TOPS = ("htc_batch", "htc_model", "pipeline", "jobs")
EXPORTING = sorted(
    str(path.parent.relative_to(ROOT)).replace("/", ".")
    for top in TOPS
    for path in (ROOT / top).rglob("__init__.py")
    if "__all__" in path.read_text()
)
HEAVY = {"PIL", "duckdb", "fsspec", "numpy", "pyarrow", "pydantic", "ray", "torch", "torchvision"}


def init_of(package: str) -> ast.Module:
    return ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())


@pytest.mark.parametrize("package", EXPORTING)
def test_every_exported_name_is_what_its_module_defines(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        exported = getattr(module, name)
        if isinstance(exported, type | FunctionType):
            assert exported.__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


@pytest.mark.parametrize("package", EXPORTING)
def test_type_checkers_see_the_names_that_are_exported(package: str) -> None:
    typed = [node for node in init_of(package).body if isinstance(node, ast.If)]
    seen = {alias.name for node in ast.walk(typed[0]) if isinstance(node, ast.ImportFrom) for alias in node.names}
    own = {node.name for node in init_of(package).body if isinstance(node, ast.FunctionDef)}
    assert seen | own == set(import_module(package).__all__)


def test_packages_that_export_names_load_nothing_heavy() -> None:
    script = f"import sys, {', '.join(EXPORTING)}\nsys.exit(sorted({HEAVY!r} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_package_that_others_import_from_exports_names() -> None:
    folders = {path.parent for top in TOPS for path in (ROOT / top).rglob("*.py") if path.name != "__init__.py"}
    without = {str(folder.relative_to(ROOT)) for folder in folders} - {name.replace(".", "/") for name in EXPORTING}
    # Programs, the root of the commands, and parts of one package's inside.
    assert without == {
        "jobs",
        "jobs/entrypoints",
        "jobs/maintenance/iceberg",
        "pipeline/inputs/containers",
        "pipeline/inputs/formats",
        "pipeline/inputs/listings",
        "pipeline/maintenance/doctor",
    }


IMPORT = re.compile(r"^\s*(?:from|import) ((?:pipeline|jobs|htc_model|htc_batch)[\w.]*)", re.MULTILINE)


def test_documents_import_from_packages_that_export_names() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    deep = [
        f"{page.relative_to(ROOT)}: {found}"
        for page in pages
        for found in IMPORT.findall(page.read_text())
        if found not in EXPORTING
    ]
    assert deep == []


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("jobs.cluster_start", "Usage: htc"),
        ("jobs.scheduling.runner", "scheduled_run.py"),
        ("jobs.manifests.start_ray_job", "template"),
    ],
)
def test_names_that_the_last_release_started_still_start(old: str, message: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", old], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("package", EXPORTING)
def test_exported_names_are_completed(package: str) -> None:
    module = import_module(package)
    assert dir(module) == sorted(module.__all__)


def test_the_imports_that_the_last_release_documented_still_work_and_warn() -> None:
    script = (
        "from pipeline.config import load_spec\nfrom pipeline.driver import run\n"
        "from pipeline.tables import open_results\nprint(load_spec.__name__, run.__name__, open_results.__name__)"
    )
    command = [sys.executable, "-W", "always", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "load_spec run open_results\n")
    assert done.stderr.count("DeprecationWarning") == 2
