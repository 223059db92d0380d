"""The import path of workers."""

import pickle
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.cluster import search_path
from pipeline.cluster.connection import make_job_config
from pipeline.cluster.search_path import worker_search_path
from pipeline.job_spec.model import ModelSection
from pipeline.worker.callers_model import CallersModel, callers_search_path
from tests.support.fakes.models import LoadFake


def test_the_current_folder_is_not_searched_whatever_ray_adds(tmp_path: Path) -> None:
    config = make_job_config()
    config._py_driver_sys_path.extend([str(tmp_path)])
    assert list(config._get_proto_job_config().py_driver_sys_path) == worker_search_path()


def test_a_checkout_is_searched_and_a_folder_of_installed_packages_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_search_path() == [str(Path(search_path.__file__).resolve().parents[2])]
    site = Path(sysconfig.get_path("purelib"))
    monkeypatch.setattr(search_path, "__file__", str(site / "pipeline" / "cluster" / "search_path.py"))
    assert worker_search_path() == []


def test_the_callers_own_model_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise ImportError('hidden')")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = len(sys.path)
    carried = CallersModel(pickle.dumps(LoadFake()), (str(tmp_path), sys.path[0]))
    carried(ModelSection(preset="htc_lite0_fpn", weights="untrained"))
    assert sys.path[-1] == str(tmp_path)
    assert len(sys.path) == before + 1


def test_the_empty_entry_of_a_notebook_is_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    assert callers_search_path() == (str(tmp_path), "/somewhere")


def test_hooks_of_installations_and_a_folder_that_is_gone_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "sources").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", ["", "/somewhere", "__editable__.x.finder.__path_hook__", "sources"])
    here = str(tmp_path / "here")
    assert callers_search_path() == (here, "/somewhere", f"{here}/sources")
    (tmp_path / "here" / "sources").rmdir()
    (tmp_path / "here").rmdir()
    assert callers_search_path() == ("/somewhere",)
