"""What training reads: semantic maps, any storage, initial weights; and what a spec must not contain."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from htc_model.weights.load import load_weights
from pipeline.errors import ImageError, SpecError
from pipeline.inputs.label_maps import decode_label_map
from pipeline.training.run import train
from pipeline.training.spec import load_training_spec
from tests.support.builders.small_photos import SIDE, write_training_folder
from tests.support.servers.s3_server import S3Server

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HTC_CACHE", str(tmp_path / "cache"))
    return write_training_folder(tmp_path)


def encoded(pixels: np.ndarray, mode: str) -> bytes:
    image = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("L")
    if mode == "P":
        image.putpalette([shade for index in range(256) for shade in (255 - index, 3, index)])
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_grey_levels_or_palette_indices(mode: str) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert np.array_equal(decode_label_map(encoded(labels, mode)), labels)


def test_a_file_that_is_no_map_is_reported() -> None:
    with pytest.raises(ImageError, match="must have one 8-bit channel, not be RGB"):
        decode_label_map(encoded(np.zeros((4, 4, 3), np.uint8), "RGB"))
    whole = encoded(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), "L")
    for broken in (b"", b"GIF89a", whole[: len(whole) // 2]):
        with pytest.raises(ImageError, match="not a readable PNG"):
            decode_label_map(broken)


@pytest.mark.slow
def test_maps_from_a_folder_give_the_semantic_branch_their_labels(folder: Path) -> None:
    (folder / "stuff").mkdir()
    for number in range(5):  # the sixth image has none
        labels = np.full((SIDE, SIDE), 11, np.uint8)
        Image.fromarray(labels).save(folder / "stuff" / f"{number}.png")
    source = {"annotations": "coco.json", "images": "photos", "stuff": "stuff"}
    overrides = {"train": [source], "model.semantic_classes": 12, "evaluate": [], "epochs": 1}
    loaded = load_weights(train(load_training_spec("spec.yaml", overrides)))
    assert loaded.metadata["config"]["semantic_classes"] == 12
    assert loaded.state["roi_head.semantic_head.conv_logits.weight"].shape[0] == 12
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    skipped = [reason for line in lines for reason in line["skipped"]]
    assert len(skipped) == 1
    assert "5.png" in skipped[0]


@pytest.mark.slow
@pytest.mark.xdist_group("s3")
def test_annotations_images_and_initial_weights_come_from_s3(folder: Path, s3_server: S3Server, s3_bucket: str) -> None:
    files = s3_server.files()
    first = train(load_training_spec("spec.yaml", {"evaluate": [], "epochs": 1}))
    files.put(str(first), f"{s3_bucket}/initial.safetensors")
    files.put(str(folder / "coco.json"), f"{s3_bucket}/coco.json")
    files.put(str(folder / "photos"), f"{s3_bucket}/photos", recursive=True)
    source = {"annotations": f"{s3_bucket}/coco.json", "images": f"{s3_bucket}/photos"}
    remote = {
        **yaml.safe_load((folder / "spec.yaml").read_text()),
        "train": [source],
        "evaluate": [source],
        "epochs": 1,
        "output": "remote",
        "storage": {"endpoint_url": s3_server.endpoint_url},
    }
    remote["model"]["initial"] = f"{s3_bucket}/initial.safetensors"
    (folder / "remote.yaml").write_text(yaml.safe_dump(remote))
    metadata = load_weights(train(load_training_spec("remote.yaml"))).metadata
    assert metadata["pictures"] == 6
    assert metadata["initialised_at_random"] == []
    assert 0 <= metadata["scores"][f"{s3_bucket}/coco.json"]["mask_ap"] <= 1
    assert "storage" not in metadata["training"]


@pytest.mark.parametrize("key", ["annotations", "images", "stuff"])
def test_credentials_in_a_url_are_refused(folder: Path, key: str) -> None:
    source = {"annotations": "coco.json", "images": "photos"} | {key: "https://me:secret@host/there"}
    with pytest.raises(SpecError, match="credentials are not written into a spec") as refused:
        load_training_spec("spec.yaml", {"train": [source]})
    assert "secret" not in str(refused.value)
