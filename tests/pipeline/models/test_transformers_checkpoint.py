"""Checkpoints of transformers are found in folders and on the hub; what cannot be had is said in one sentence."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.errors import ModelError
from pipeline.job_spec.model import ModelSection
from pipeline.models import transformers_models
from pipeline.models.adapters import ADAPTERS
from pipeline.models.identity import fingerprint_of, identify_model
from pipeline.models.transformers_checkpoint import check_name, find_checkpoint
from tests.support.builders.tiny_transformers import save_checkpoint
from tests.support.paths import ROOT
from tests.support.servers.model_hub import ModelHub

# In a process of its own: the library reads these settings when it is imported.
_FIND_CODE = """
import json, sys
from pipeline.errors import ModelError
from pipeline.models.transformers_checkpoint import find_checkpoint, is_here
for name in sys.argv[1:]:
    try:
        found = find_checkpoint(name)
        print(json.dumps([name, found.architecture, [path.name for path in found.files()], is_here(name)]))
    except ModelError as error:
        print(json.dumps([name, str(error)]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("rf_detr", tmp_path_factory.mktemp("hub") / "tiny")


def find_on(url: str, home: Path, names: list[str], **settings: str) -> list[list[object]]:
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
    for name in ("HF_HUB_CACHE", "HF_TOKEN"):
        environment.pop(name, None)
    command = [sys.executable, "-c", _FIND_CODE, *names]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_checkpoints_of_the_hub(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "README.md").write_text("not fetched")
    files = ["config.json", "preprocessor_config.json", "model.safetensors"]
    with ModelHub({"owner/tiny": checkpoint}, gated=("owner/gated",)) as hub:
        names = ["owner/tiny", "owner/none", "owner/gated", "owner/tiny@v9"]
        found, none, gated, revision = find_on(hub.url, tmp_path, names)
        assert found == ["owner/tiny", "RfDetrForInstanceSegmentation", files, True]
        assert "has no owner/none" in str(none[1])
        assert "accept them at https://huggingface.co/owner/gated, and set HF_TOKEN" in str(gated[1])
        assert "owner/tiny on the Hugging Face Hub has no revision v9" in str(revision[1])
        assert not any("README" in path for path in hub.requests)
        hub.requests.clear()
        # A later process asks the hub for nothing that is in the cache.
        assert find_on(hub.url, tmp_path, ["owner/tiny"]) == [found]
        assert not any("owner/tiny" in path for path in hub.requests)
        url = hub.url
    offline, missing = find_on(url, tmp_path, ["owner/tiny", "owner/none"], HF_HUB_OFFLINE="1")
    assert offline == found
    assert "owner/none is not in this machine's cache" in str(missing[1])
    assert "HF_HUB_OFFLINE is set" in str(missing[1])
    assert "Connection refused" in str(find_on(url, tmp_path, ["owner/none"])[0][1])


def test_pickled_weights_are_fetched_where_there_are_no_others(checkpoint: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (old / name).write_bytes((checkpoint / name).read_bytes())
    (old / "pytorch_model.bin").write_bytes(b"weights")
    with ModelHub({"owner/old": old}) as hub:
        found = find_on(hub.url, tmp_path / "home", ["owner/old"])
        files = ["config.json", "preprocessor_config.json", "pytorch_model.bin"]
        assert found == [["owner/old", "RfDetrForInstanceSegmentation", files, True]]
        hub.requests.clear()
        assert find_on(hub.url, tmp_path / "home", ["owner/old"]) == found
        assert not any("owner/old" in path for path in hub.requests)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "needs a checkpoint"),
        ("s3://bucket/model", "copy it to a local folder"),
        ("a/b/c", "neither a local folder nor a name"),
        ("./nowhere", "no folder"),
    ],
)
def test_names_that_are_none(name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_name(name)


def write_config(folder: Path, values: Mapping[str, object]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["RfDetrForObjectDetection"]}, "finds boxes without masks"),
        ({"architectures": ["SegformerForSemanticSegmentation"]}, "finds no instances"),
        ({"architectures": ["MyModel"], "auto_map": {"AutoModel": "code.MyModel"}}, "code of its own.*never run"),
        ({}, "names no architecture"),
    ],
)
def test_checkpoints_that_find_no_instances(config: dict[str, object], words: str, tmp_path: Path) -> None:
    name = write_config(tmp_path / "model", config)
    for refused in (transformers_models.check_name, transformers_models.make):
        with pytest.raises(ModelError, match=f"The checkpoint model .*{words}.*Mask2Former"):
            refused(name)


def test_folders_that_lack_something(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no checkpoint of transformers: it has no config\.json"):
        transformers_models.check_name(str(tmp_path))
    folder = tmp_path / "model"
    folder.mkdir()
    name = str(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="The checkpoint model cannot be read"):
        find_checkpoint(name)
    (folder / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json"):
        transformers_models.make(name)
    (folder / "preprocessor_config.json").write_bytes((checkpoint / "preprocessor_config.json").read_bytes())
    with pytest.raises(ModelError, match=r"has no weights \(model\.safetensors\)"):
        transformers_models.make(name)
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="The checkpoint model cannot be loaded as RfDetr"):
        transformers_models.make(name)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"is incomplete: .* lacks model-00001-of-00002"):
        transformers_models.default_files(name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resample": 0}, "the filter 0 of Pillow"),
        ({"size": {"longest_edge": 64}}, "resizes its images to"),
        ({"do_split_image": True}, "splits its images"),
    ],
)
def test_processors_that_are_not_understood(
    settings: dict[str, object], words: str, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**values, "image_processor_type": "EomtImageProcessor", **settings})
    )
    with pytest.raises(ModelError, match=words):
        transformers_models.make(str(folder))


@pytest.mark.parametrize("weights", ["default", "untrained", "model.safetensors"])
@pytest.mark.parametrize("changed", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_the_fingerprint_is_of_all_files(weights: str, changed: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    chosen = str(folder / weights) if "." in weights else weights
    section = ModelSection.model_validate({"factory": f"transformers:{folder}", "weights": chosen})
    before = fingerprint_of(section)
    with (folder / changed).open("ab") as file:
        file.write(b" ")
    is_used = weights != "untrained" or changed != "model.safetensors"
    assert (fingerprint_of(section) != before) == is_used


def test_a_wrong_option_ends_before_a_worker_is_started(checkpoint: Path) -> None:
    section = ModelSection.model_validate({"factory": f"transformers:{checkpoint}", "options": {"pad_multipel": 32}})
    with pytest.raises(ModelError, match=r"takes no option pad_multipel; did you mean pad_multiple\?"):
        identify_model(section)


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "pipeline.models.transformers_models", raising=False)
    with pytest.raises(ModelError, match=r"transformers.*pip install 'htc-batch\[transformers\]'"):
        ADAPTERS["transformers"].load()
