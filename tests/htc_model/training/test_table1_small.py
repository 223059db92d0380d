"""The paper's comparison at small scale: cells on a tiny data set, semantic maps, scores, and the tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import table1_small
from benchmarks.table1_data import CLASSES, merge_documents
from htc_model.network.efficientnet import EfficientNetLite0
from htc_model.training.annotation_parsing import to_rle
from htc_model.training.build import build_model_config, build_training_model
from htc_model.training.coco_reader import read_annotations
from htc_model.training.spec import ModelSection, TrainingSpec
from htc_model.weights.load import load_weights
from tests.support.builders.training_data import SIDE, draw_image, small_document

# The benchmark's modules import each other by their own names, as its users run it.
import table1_masks  # isort: skip
import table1_report  # isort: skip
import table1_scores  # isort: skip
import table1_stuff  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def data(tmp_path):
    """Two folders as the real ones: persons and cups, training and held-out."""
    for folder, images in (("coco_person1", 3), ("coco_mini", 4)):
        (tmp_path / "data" / folder / "images").mkdir(parents=True)
        document = small_document(images)
        document["categories"] = [
            {"id": 3, "name": "person", "supercategory": "person"},
            {"id": 7, "name": "cup", "supercategory": "kitchen"},
        ]
        for part, prefix in (("train", ""), ("heldout", "held_")):
            named = [{**image, "file_name": f"{prefix}{image['file_name']}"} for image in document["images"]]
            path = tmp_path / "data" / folder / f"instances_{part}.json"
            path.write_text(json.dumps(document | {"images": named}))
            for image, source in zip(named, document["images"], strict=True):
                picture = Image.fromarray(np.asarray(draw_image(source["file_name"])))
                picture.save(tmp_path / "data" / folder / "images" / image["file_name"])
    return tmp_path / "data"


@pytest.fixture
def random_backbone(monkeypatch):
    """The semantic maps' backbone at random, as the ImageNet weights come from a package of their own."""
    torch.manual_seed(0)
    state = {f"backbone.{name}": tensor for name, tensor in EfficientNetLite0().state_dict().items()}
    monkeypatch.setattr(table1_stuff, "load_imagenet_lite0", lambda: state)


def arguments_of(tmp_path, data, *flags):
    small = ("--initial", "none", "--start-epochs", "0", "--short-side", str(SIDE), "--batch-size", "2")
    return table1_small.read_arguments([str(tmp_path / "out"), "--data", str(data), *small, *flags])


def planned(tmp_path, data, *flags):
    arguments = arguments_of(tmp_path, data, *flags)
    (tmp_path / "out").mkdir(exist_ok=True)
    prepared = table1_small.prepare(arguments, tmp_path / "out")
    return list(table1_small.plan_cells(arguments, tmp_path / "out", prepared))


def test_a_part_of_the_cells_is_balanced_over_the_main_systems(tmp_path, data, random_backbone):
    cells = planned(tmp_path, data)
    assert len(cells) == 24
    assert [(cell.system, cell.seed) for cell in cells[:6]] == [
        ("Cascade Mask R-CNN", 0),
        ("HTC", 0),
        ("HTC without semantic", 0),
        ("PANet", 0),
        ("Mask R-CNN", 0),
        ("Cascade Mask R-CNN", 1),
    ]
    assert len({cell.folder for cell in cells}) == 24
    some = planned(tmp_path, data, "--systems", "HTC", "--seeds", "4")
    assert [(cell.system, cell.seed) for cell in some] == [("HTC", 4)]


def test_a_cell_is_another_one_as_soon_as_a_setting_or_the_data_differs(tmp_path, data, random_backbone):
    first = planned(tmp_path, data)[0]
    assert planned(tmp_path, data)[0] == first
    assert planned(tmp_path, data, "--loaders", "2")[0].key == first.key  # the same numbers, sooner
    assert planned(tmp_path, data, "--epochs", "3")[0].key != first.key
    assert planned(tmp_path, data, "--pictures", "2")[0].key != first.key


def test_the_classes_are_groups_of_categories(tmp_path, data, random_backbone):
    cells = planned(tmp_path, data)
    train, heldout = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "heldout"))
    assert [category["name"] for category in train["categories"]] == list(CLASSES)
    assert {CLASSES[entry["category_id"] - 1] for entry in train["annotations"]} == {"person", "kitchen"}
    assert len(train["images"]) == len(heldout["images"]) == 7
    annotations = table1_small.read_heldout(cells[0].spec, tmp_path / "out" / "heldout.json").annotations
    # In coco_person1 nothing but persons is annotated.
    assert table1_scores.images_of_class("person", annotations) == list(range(7))
    assert table1_scores.images_of_class("kitchen", annotations) == [3, 4, 5, 6]


def test_maps_have_the_categories_of_objects_and_regions_around_them(tmp_path, data, random_backbone):
    cells = planned(tmp_path, data)
    folder = tmp_path / "out" / "stuff"
    document = merge_documents(data, "instances_train.json", is_grouped=False)
    labels = table1_stuff.count_labels(document)
    assert labels == 2 + table1_stuff.REGIONS
    drawn = np.asarray(Image.open(folder / "coco_mini" / "images" / "1.png"))
    x, y, width, height = document["annotations"][4]["bbox"]
    assert (drawn[y : y + height, x : x + width] == 1).all()  # the cup, the second category
    outside = np.ones(drawn.shape, bool)
    outside[y : y + height, x : x + width] = False
    assert ((drawn[outside] >= 2) & (drawn[outside] < labels)).all()
    assert len(list(folder.rglob("*.png"))) == 7
    htc = next(cell for cell in cells if cell.system == "HTC")
    assert htc.spec.model.semantic_classes == labels
    assert htc.spec.train[0].stuff == str(folder)
    assert cells[0].spec.train[0].stuff is None  # only the semantic branch reads maps


def test_crowds_are_ignored_in_maps_and_small_objects_lie_over_large_ones():
    def entry(category, box, **more):
        left, top, right, bottom = box
        return {"category_id": category, "segmentation": [[left, top, right, top, right, bottom, left, bottom]], **more}

    objects = [entry(7, (2, 2, 4, 4)), entry(3, (0, 0, 6, 6)), entry(3, (6, 6, 8, 8), iscrowd=1)]
    document = {"categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]}
    drawn = table1_stuff.draw_map(objects, np.full((8, 8), 5, np.uint8), document)
    assert drawn[3, 3] == 1
    assert drawn[0, 0] == 0
    assert drawn[7, 7] == 255
    assert drawn[0, 7] == 2 + 5


def random_detections(images, *, seed):
    random = np.random.default_rng(seed)
    for image in range(images):
        for score in random.random(6):
            left, top = random.integers(0, 40, 2).tolist()
            width, height = random.integers(20, 55, 2).tolist()
            corners = [left, top, left + width, top, left + width, top + height, left, top + height]
            yield {
                "image_id": image, "category_id": int(random.choice([3, 7])), "score": float(score),
                "bbox": [left, top, width, height], "segmentation": to_rle([corners], (SIDE, SIDE)),
            }  # fmt: skip


def test_resampled_scores_are_cocos_own_of_the_drawn_photos(monkeypatch):
    images = 12
    annotations = read_annotations(small_document(images), is_truth=True)
    monkeypatch.setattr(table1_scores, "images_of_class", lambda name, annotations: list(range(images)))
    found = list(random_detections(images, seed=1))
    matches = table1_scores.match_cell(found, annotations)
    scores = table1_scores.score_cell(found, annotations)
    assert 0 < scores["three"]["mask_ap"] < 1
    for kind in ("box", "mask"):
        for name in annotations.classes:
            assert matches[f"{kind} {name}"].average_precision() == pytest.approx(scores[name][f"{kind}_ap"])
    assert scores["mean"]["mask_ap"] == pytest.approx((scores["three"]["mask_ap"] + scores["seven"]["mask_ap"]) / 2)
    # Photos that are drawn twice and not at all, against COCO's program on copies of the photos.
    weights = np.array([2.0, 0, 1, 1, 3, 0, 1, 1, 0, 1, 1, 1])
    drawn = [number for number, count in enumerate(weights) for _ in range(int(count))]
    copied = replace(annotations, images=tuple(annotations.images[number] for number in drawn))
    again = [{**each, "image_id": new} for new, old in enumerate(drawn) for each in found if each["image_id"] == old]
    whole = table1_scores.score_cell(again, copied)
    for name in annotations.classes:
        assert matches[f"mask {name}"].average_precision(weights) == pytest.approx(whole[name]["mask_ap"])
    resampled = table1_scores.resampled_scores(matches, weights[None], "mask", annotations.classes)
    assert resampled == pytest.approx([whole["mean"]["mask_ap"]])


def test_a_class_without_detections_or_objects_is_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(table1_scores, "images_of_class", lambda name, annotations: [0])
    annotations = read_annotations(small_document(1), is_truth=True)  # an object of "three", none of "seven"
    matches = table1_scores.match_cell([], annotations)
    assert matches["mask three"].average_precision() == 0
    assert np.isnan(matches["mask seven"].average_precision())
    table1_scores.save_matches(tmp_path / "m.npz", matches)
    assert table1_scores.read_matches(tmp_path / "m.npz")["box three"].average_precision() == 0


def test_each_draw_has_as_many_photos_of_each_group():
    weights = table1_scores.resample_images([[0, 2, 4], [1, 3]], 50, seed=0)
    assert (weights[:, [0, 2, 4]].sum(axis=1) == 3).all()
    assert (weights[:, [1, 3]].sum(axis=1) == 2).all()
    assert len(np.unique(weights, axis=0)) > 10


@pytest.mark.slow
def test_a_cell_is_trained_and_scored_once_and_is_in_the_tables(tmp_path, data, random_backbone, capsys):
    flags = ("--systems", "HTC", "Cascade Mask R-CNN", "PANet", "--seeds", "0", "--epochs", "1", "--start-epochs", "1")
    arguments = [str(tmp_path / "out"), "--data", str(data), "--initial", "none", "--short-side", str(SIDE), *flags]
    assert table1_small.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("the start: Mask R-CNN") == 1
    assert "| HTC | 1 |" in out
    assert "| PANet | 1 |" in out
    assert not list(tmp_path.glob("out/cells/*/checkpoint.pt"))
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("out/cells/*/result.json")}
    assert len(results) == 3
    for result in results.values():
        assert (result["pictures"], result["heldout"]) == (7, 7)
        assert 0 <= result["scores"]["person"]["mask_ap"] <= 1
    (path,) = tmp_path.glob("out/start/cells/*/start.safetensors")
    start = load_weights(path).state
    assert {name.split(".")[0] for name in start} == {"backbone", "neck", "rpn_head"}  # no head is shared
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: begin -->\nold\n<!-- table: end -->\nafter\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/cells/*/*")}
    assert table1_small.main([*arguments, "--report", "--draws", "20", "--page", str(page)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/cells/*/*")} == before  # nothing is trained
    assert page.read_text().startswith("before\n<!-- table: begin -->")
    assert "| HTC | " in page.read_text()
    assert "old" not in page.read_text()
    assert table1_masks.main([str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "| HTC | semantic branch |" in out
    assert "| HTC | mask flow into head 3 |" in out
    assert table1_masks.main([str(tmp_path)]) == 2


def cell_of(system, seed, mask_ap):
    scores = {"mask_ap": mask_ap, "mask_ap50": 0.4, "mask_ap75": 0.1, "box_ap": mask_ap + 0.05}
    scores |= {"mask_ap_small": 0.01, "mask_ap_medium": 0.2, "mask_ap_large": -1.0}
    settings = {
        "model": {
            "preset": "htc_lite0_fpn", "initial": "start.safetensors", "frozen_stages": 1, "short_side": 192,
            "classes": ["person", "animal"],
        },
        "optimiser": {"kind": "adamw", "learning_rate": 0.001, "schedule": "cosine"},
        "sampling": {"rois": 48, "proposals": 150},
        "epochs": 2,
        "batch_size": 4,
    }  # fmt: skip
    return {
        "system": system, "seed": seed, "scores": {"mean": scores, "person": scores}, "settings": settings,
        "pictures": 640, "heldout": 152, "steps": 160, "machine": "x86_64, 1 thread", "versions": {"torch": "2.11"},
        "cpu_s": 100.0, "matches": "nowhere",
    }  # fmt: skip


def test_the_tables_give_mean_spread_and_gain_by_seed_beside_the_papers(tmp_path):
    results = [
        cell_of("Cascade Mask R-CNN", 0, 0.20),
        cell_of("Cascade Mask R-CNN", 1, 0.22),
        cell_of("HTC", 0, 0.23),
        cell_of("HTC", 1, 0.21),
        cell_of("HTC", 2, 0.30),  # no baseline of this seed yet: it counts in the mean, not in the gain
    ]
    text = table1_report.describe_cells(results, tmp_path / "heldout.json")
    assert "| HTC | 3 | 24.7 (21.0 to 30.0) | 40.0 | 10.0 | 1.0 | 20.0 | - | 29.7 (26.0 to 35.0) |" in text
    # Student's interval of two gains, 3 and -1: 1 plus or minus 12.706 * 2.828 / 2 ** 0.5.
    assert "| HTC | +1.0 | +3.0 -1.0 | -24.4 to +26.4 |  | +0.0 | +1.0 | +1.5 (ResNet-50), +1.3 (ResNet-101)" in text
    assert "640 training images, 2 epochs, 160 steps of 4" in text
    assert "initial weights: those of the start" in text
    assert list(table1_report.paired_gains(results, "HTC", "person")) == [0, 1]
    assert table1_report.seed_interval([1.0]) is None
    assert table1_report.describe_cells([], tmp_path) == "No cell is finished yet.\n"


def test_the_interval_over_photos_is_of_both_systems_on_the_same_photos(tmp_path):
    def matches(hits):
        images = len(hits)
        hit = np.repeat(np.array([hits], bool), 10, axis=0)
        return table1_scores.Matches(np.arange(images), hit, np.zeros_like(hit), np.ones(images, np.int64))

    found = {"Cascade Mask R-CNN": [True, False, False, False], "HTC": [True, True, False, False]}
    results = []
    for system, hits in found.items():
        table1_scores.save_matches(tmp_path / system, {"mask person": matches(hits)})
        results.append({**cell_of(system, 0, 0.2), "matches": str(tmp_path / system)})
    once = table1_report.draw_scores(results, "person", np.ones((3, 4)))
    low, high = table1_report.photo_interval(once, "HTC", [0])
    recall = 100 * (51 - 26) / 101  # COCO reads 101 recalls
    assert low == pytest.approx(recall, abs=1e-6)
    assert high == pytest.approx(recall, abs=1e-6)


def test_what_cannot_run_is_said_in_one_sentence(tmp_path, data, random_backbone, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = ["--initial", "none", "--start-epochs", "0", "--short-side", str(SIDE)]
    page = tmp_path / "page.md"
    page.write_text("nothing")
    for flags, said in (
        (["--data", str(tmp_path / "elsewhere")], "coco_person1/instances_train.json does not exist"),
        (["--data", str(data), "--device", "cuda"], "no GPU"),
        (["--data", str(data), "--report", "--page", str(page)], "page.md has no place for the table"),
    ):
        with pytest.raises(SystemExit) as stop:
            table1_small.main([str(tmp_path / "out"), *flags, *small])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def layers_of(system):
    section = ModelSection(initial="none", classes=("person",), **table1_small.SYSTEMS[system])
    config = build_model_config(section, ["person"], [1])
    spec = TrainingSpec.model_validate(
        {"train": [{"annotations": "a", "images": "b"}], "output": "out", "seed": 5, "model": section}
    )
    return build_training_model(spec, config, lambda name: {})[0].state_dict()


def test_systems_start_with_the_same_numbers_where_they_share_a_layer():
    mask_rcnn, cascade, htc = layers_of("Mask R-CNN"), layers_of("Cascade Mask R-CNN"), layers_of("HTC")
    assert all(torch.equal(tensor, htc[name]) for name, tensor in cascade.items())
    renamed = {name.replace("_head.", "_head.0.") if "roi_head" in name else name: t for name, t in mask_rcnn.items()}
    renamed = {name.replace("roi_head.0.", "roi_head."): tensor for name, tensor in renamed.items()}
    assert set(renamed) < set(cascade)
    assert all(torch.equal(tensor, cascade[name]) for name, tensor in renamed.items())
    stages = [htc[f"roi_head.bbox_head.{stage}.fc_cls.weight"] for stage in (0, 1)]
    assert not torch.equal(*stages)
    panet = layers_of("PANet")
    assert set(mask_rcnn) < set(panet)
    assert all(torch.equal(tensor, panet[name]) for name, tensor in mask_rcnn.items())
    assert any("fusion_fc" in name for name in panet)
