"""Another factory, options, weights or version is another model: a run is resumed with the same one only."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.job_spec.job import load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.models import factory
from pipeline.models.identity import FactoryFingerprint, code_version, fingerprint_of, identify_model
from pipeline.weights.fingerprint import compute_fingerprint
from pipeline.weights.naming import model_name

MODULE = "tests.support.fakes.own_models"


def section(**values: Any) -> ModelSection:
    return ModelSection.model_validate({"factory": f"{MODULE}:load", **values})


def test_what_is_another_model_has_another_fingerprint(tmp_path: Path) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    fingerprints = [
        fingerprint_of(each)
        for each in (
            section(),
            section(options={"fault": "label"}),
            section(score_threshold=0.1),
            section(max_detections=5),
            section(weights="untrained"),
            section(weights=str(one)),
            section(weights=str(other)),
            section(factory=f"{MODULE}:load_weights"),
        )
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert fingerprint_of(section()) == fingerprints[0]
    assert [each.trained for each in fingerprints].count(False) == 1


def test_a_folder_of_weights_is_hashed_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint_of(section(weights=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    after = fingerprint_of(section(weights=str(tmp_path)))
    assert before.weights_sha256 != after.weights_sha256


def test_a_preset_s_fingerprint_is_as_before() -> None:
    preset = ModelSection(preset="htc_lite0_fpn", weights="untrained")
    assert fingerprint_of(preset) == compute_fingerprint(preset)
    assert not isinstance(fingerprint_of(preset), FactoryFingerprint)
    assert "model.options" not in load_spec(None, {"input.uri": "in", "output.uri": "out"}).identity()


def test_code_that_no_package_installs_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*factory.search_path()[:-1]])
    module = tmp_path / "my_models_for_identity.py"
    module.write_text("def load(): return 1\n")
    own = ModelSection.model_validate({"factory": "my_models_for_identity:load"})
    _, before = identify_model(own)
    module.write_text("def load(): return 2\n")
    _, after = identify_model(own)
    assert isinstance(before, FactoryFingerprint)
    assert isinstance(after, FactoryFingerprint)
    assert before.code.startswith("source ")
    assert before.code != after.code


def test_modules_beside_it_that_it_imports_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*factory.search_path()[:-1], str(tmp_path)])
    (tmp_path / "my_top_module.py").write_text("import os, my_helper\ndef load(): return 1\n")
    (tmp_path / "my_helper.py").write_text("def help():\n    from my_parts.heads import head\n")
    (tmp_path / "my_parts").mkdir()
    heads = tmp_path / "my_parts" / "heads.py"
    heads.write_text("import my_top_module\nhead = 1\n")
    (tmp_path / "my_other.py").write_text("x = 1\n")
    versions = [code_version("my_top_module:load")]
    heads.write_text("import my_top_module\nhead = 2\n")
    versions.append(code_version("my_top_module:load"))
    (tmp_path / "my_helper.py").write_text("x = 2\n")
    versions.append(code_version("my_top_module:load"))
    assert len(set(versions)) == 3
    (tmp_path / "my_other.py").write_text("not python (\n")
    assert code_version("my_top_module:load") == versions[-1]


def test_a_library_counts_by_its_version() -> None:
    fingerprint = fingerprint_of(section(factory="torchvision:ssdlite320_mobilenet_v3_large", weights="untrained"))
    assert isinstance(fingerprint, FactoryFingerprint)
    assert fingerprint.code.startswith("torchvision ")


def test_tables_name_it_as_the_spec_does() -> None:
    assert model_name("torchvision:a", "default", "0" * 64) == "torchvision:a"
    assert model_name("torchvision:a", "untrained", "untrained-v1") == "torchvision:a"
    assert model_name("torchvision:a", "/w/best.pth", "ab" * 32) == "torchvision:a:best.pth@abababab"
