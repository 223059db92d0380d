"""Packages that register models, with and without what they need; each is a real distribution in a folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ModelError, SpecError
from pipeline.job_spec.job import load_spec
from pipeline.models.entry_points import list_registered, load_registered
from pipeline.models.factory import make_model
from pipeline.models.identity import code_version
from tests.support.htc import run_htc

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Write a package with a model into a folder of the search path, with the metadata that pip writes."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(package: str, source: str, entries: str) -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[htc_batch.models]\n{entries}\n")
        (info / "top_level.txt").write_text(f"{package}\n")

    yield write
    for name in [each for each in sys.modules if each.startswith("plugin_")]:
        del sys.modules[name]


GOOD = "from tests.support.fakes.own_models import load\n"
BROKEN = "import a_package_that_is_not_there\n"


def test_a_registered_name_is_a_model(install: Install) -> None:
    install("plugin_good", GOOD, "regions = plugin_good:load")
    model = load_spec(None, {"input.uri": "in", "output.uri": "out", "model.preset": "regions"}).model
    assert (model.factory, model.weights) == ("regions", "default")
    assert make_model(model).name == "regions"
    assert code_version("regions") == "plugin_good 1.2"


def test_a_plug_in_that_lacks_a_package_is_one_sentence_and_breaks_nothing_else(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plugin_good", GOOD, "regions = plugin_good:load")
    install("plugin_broken", BROKEN, "broken = plugin_broken:load")
    install("plugin_raising", "raise OSError('no licence')\n", "raising = plugin_raising:load")
    install("plugin_exit", "raise SystemExit(0)\n", "exit = plugin_exit:load")
    install("plugin_value", "load = 3\n", "value = plugin_value:load")
    install("plugin_shadow", GOOD, "htc_r50_fpn = plugin_shadow:load")
    sentence = (
        "The model broken of the package plugin_broken needs the package a_package_that_is_not_there, which is not "
        "installed here; install it: pip install a_package_that_is_not_there"
    )
    problems = {each.name: each.problem for each in list_registered()}
    assert problems["broken"] == sentence
    assert (
        problems["raising"]
        == "The model raising of the package plugin_raising cannot be imported: OSError: no licence."
    )
    assert (
        problems["exit"]
        == "The model exit of the package plugin_exit cannot be imported: SystemExit: 0 (which ends a program)."
    )
    assert "is no factory: plugin_value:load is of type int" in problems["value"]
    assert problems["htc_r50_fpn"] == "it has the name of a preset, which comes first"
    assert problems["regions"] == ""
    with pytest.raises(ModelError, match="needs the package a_package_that_is_not_there"):
        load_registered("broken")
    code, out, err = run_htc(capsys, "model", "list")
    assert code == 0
    assert "plugin_good 1.2" in out
    assert sentence in err
    assert "Traceback" not in err
    # Other commands do not import plug-ins.
    preset = load_spec(None, {"input.uri": "in", "output.uri": "out", "model.preset": "htc_r50_fpn"}).model
    assert preset.factory is None


def test_a_name_of_weights_is_no_model() -> None:
    with pytest.raises(ModelError, match=r"^demo is the name of weights, and of no model: give it with --weights demo"):
        load_registered("demo")


def test_a_misspelt_name_names_those_that_there_are(install: Install) -> None:
    install("plugin_good", GOOD, "regions = plugin_good:load")
    with pytest.raises(SpecError, match="Installed packages register: regions"):
        load_spec(None, {"input.uri": "in", "output.uri": "out", "model.preset": "region"})
