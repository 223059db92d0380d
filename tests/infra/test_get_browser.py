"""`infra/get_browser.py` installs nothing where it may not or need not, never fails, and says what it did."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.delenv("HTC_CHROMIUM", raising=False)
    spec = importlib.util.spec_from_file_location("get_browser", ROOT / "infra" / "get_browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("programs", "user", "said"),
    [
        ({"google-chrome": "/opt/chrome"}, 1000, "/opt/chrome is there"),
        ({}, 0, "no apt-get"),
        ({"apt-get": "/usr/bin/apt-get"}, 1000, "only root"),
    ],
)
def test_nothing_is_installed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], user: int, said: str
) -> None:
    monkeypatch.setattr(shutil, "which", programs.get)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    assert said in script.why_not()
    assert script.main() == 0


def test_a_browser_that_is_named_is_enough(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTC_CHROMIUM", "/opt/own")
    assert "/opt/own" in script.why_not()


def test_what_apt_get_says_is_passed_on_and_setup_goes_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", {"apt-get": "/usr/bin/apt-get"}.get)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    failed = subprocess.CompletedProcess([], 100, stdout="", stderr="W: slow\nE: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    assert script.main() == 0
    assert "apt-get update: E: no network" in capsys.readouterr().out


def test_an_apt_get_that_hangs_is_ended(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hanging = tmp_path / "apt-get"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(script, "UPDATE_S", 0.2)
    found: dict[str, Any] = {"apt-get": str(hanging)}
    monkeypatch.setattr(shutil, "which", found.get)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert script.main() == 0
    assert "did not end within 0.2 s" in capsys.readouterr().out
