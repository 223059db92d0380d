"""`htc evaluate`: COCO average precision of a run, from its tables; needs no torch."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from htc_model.masks.rle import decode_lengths
from htc_model.training.annotations import BadAnnotation, CocoAnnotations
from htc_model.training.coco_eval import AREA_RANGES, coco_document, count_by_size, score_results
from jobs.results.formats import json_value
from jobs.results.ground_truth import flaw_sentences, read_truth, refuse_flaws
from jobs.terminal.console import say, write_line, write_table
from pipeline.errors import HtcError, InputError
from pipeline.inputs.coco_files import read_coco
from pipeline.job_spec.job import ModelSection
from pipeline.output.results import Results, open_results
from pipeline.storage.storage import Storage
from pipeline.storage.uris import WEB_SCHEMES, scheme_of
from pipeline.text import count_of
from pipeline.weights.cache import weights_here
from pipeline.weights.fingerprint import resolve_config

if TYPE_CHECKING:
    from htc_model.config import ModelConfig
    from pipeline.storage.config import StorageSection

_COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
MAX_NAMED = 3
# A share over n images has a standard error of up to 0.5 / sqrt(n): five points here.
FEW_IMAGES = 100


@dataclass(frozen=True)
class Evaluation:
    """The scores of a run.

    scores: see `score_results`. images: number of scored images. instances: number of detections on them.
    classes: names of the scored classes. missing: annotated images without a row in the run, not scored.
    objects: number of scored ground truth objects, see `count_by_size`. bad, mended: flaws of the annotations, left
    out or still counted. notes: sentences on what the scores mean.
    """

    run: str
    scores: dict[str, float]
    images: int
    instances: int
    classes: tuple[str, ...]
    missing: tuple[str, ...]
    objects: Mapping[str, int] = field(default_factory=dict)
    bad: tuple[BadAnnotation, ...] = ()
    mended: tuple[BadAnnotation, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values: scores in [0, 1], and each flaw."""
        flaws = {"left_out": self.bad, "mended": self.mended}
        return {
            "run": self.run,
            "images": self.images,
            "detections": self.instances,
            "objects": dict(self.objects),
            "classes": list(self.classes),
            **self.scores,
            "missing": list(self.missing),
            **{
                name: [{"annotation": flaw.annotation_id, "image": flaw.image, "kind": flaw.kind} for flaw in found]
                for name, found in flaws.items()
            },
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class _RunImage:
    """One image of the run; size: (height, width) in pixels, None if it was not decoded."""

    image_id: int
    size: tuple[int, int] | None


def report_evaluation(
    output_uri: str,
    annotations_uri: str,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
    is_json: bool = False,
    storage_section: "StorageSection | None" = None,
) -> int:
    """Score a run and write its average precisions, in percent.

    Raises:
        InputError: no such run, no annotated image in it, two images of one name, images of another size, or a
            damaged mask.
        SpecError: the annotations cannot be read, or have flaws and `is_strict`.
    """
    storage = Storage(storage_section)
    results = open_results(output_uri, storage)
    evaluation = evaluate_run(results, annotations_uri, storage, run=run, classes=classes, is_strict=is_strict)
    if evaluation.missing:
        count = count_of(len(evaluation.missing), "annotated image")
        say(f"Not scored: {count} without a row in the run ({_named(evaluation.missing)}).")
    for sentence in evaluation.notes:
        say(sentence)
    if is_json:
        write_line(json.dumps(json_value(evaluation.to_dict())))
        return 0
    rows = [
        (kind, *(_percent(evaluation.scores[f"{kind}_{name}"]) for name in _COLUMNS))
        for kind in ("box", "mask")
        if f"{kind}_ap" in evaluation.scores
    ]
    sizes = (f"{evaluation.objects[name]:,}" for name in AREA_RANGES)
    rows.append(("objects", f"{evaluation.objects['all']:,}", "", "", *sizes))
    write_table(
        ["", *_COLUMNS.values()], rows, alignments=["left", "right", "right", "right", "right", "right", "right"]
    )
    write_line(
        f"Run {evaluation.run}: {count_of(evaluation.images, 'image')}, "
        f"{count_of(evaluation.instances, 'detection')} of {_named(evaluation.classes)}; "
        "average precision in percent, as pycocotools computes it."
    )
    return 0


def evaluate_run(
    results: Results,
    annotations_uri: str,
    storage: Storage,
    *,
    run: str | None = None,
    classes: Sequence[str] = (),
    is_strict: bool = False,
) -> Evaluation:
    """Score a run's tables against COCO annotations.

    An annotated image is the run's image whose URI ends with the file name. Every annotated image with a row counts,
    also if it failed; other images of the run do not.

    Args:
        annotations_uri: a COCO JSON file, a path or a URI.
        run: None takes the newest run that has images.
        classes: names to score; by default the classes of the annotations that the model knows.
        is_strict: refuse annotations with any flaw.

    Raises: as `report_evaluation`.
    """
    run = run or results.newest_run()
    rows = results.images(run, ["image_id", "uri", "width", "height"]).to_pylist()
    images = _RunImages(rows)
    model = _model(results, run)
    found = results.instances(run, ["image_id", "category", "score", "bbox", "mask"]).to_pylist()
    truth, notes = read_truth(
        read_coco(annotations_uri, storage),
        annotations_uri,
        run,
        known=sorted({row["category"] for row in found}) if model is None else model.classes,
        classes=classes,
        is_model_known=model is not None,
        find_size=images.find_size,
    )
    if is_strict:
        refuse_flaws(truth, annotations_uri)
    numbers, missing = images.match(truth, annotations_uri)
    if not numbers:
        raise InputError(f"None of the images in {annotations_uri} is in run {run}, such as {missing[0]}.")
    images.refuse_other_sizes(truth, numbers, annotations_uri)
    detections = _detections(found, truth, numbers)
    document = coco_document(truth)
    scored = sorted(numbers.values())
    # A run without detections does not show whether its model predicts masks.
    makes_masks = any("segmentation" in each for each in detections) if detections else model is None or model.has_masks
    scores = score_results(detections, document, scored, truth.category_ids, has_masks=makes_masks)
    notes = [
        *flaw_sentences(truth, annotations_uri),
        *notes,
        *images.notes,
        *_caveats(truth, scored, scores, makes_masks),
    ]
    return Evaluation(
        run,
        scores,
        len(numbers),
        len(detections),
        truth.classes,
        tuple(missing),
        count_by_size(document, scored),
        truth.bad,
        truth.mended,
        tuple(notes),
    )


def _caveats(
    truth: CocoAnnotations, scored: Sequence[int], scores: Mapping[str, float], makes_masks: bool
) -> list[str]:
    """Return why there is no mask AP, and how uncertain the averages are, as sentences."""
    sentences = []
    objects = [[entry for entry in truth.images[number].objects if not entry.is_crowd] for number in scored]
    without = sum(entry.segmentation is None for entries in objects for entry in entries)
    if not makes_masks:
        sentences.append("No mask AP: the run's model predicts boxes only.")
    elif "mask_ap" not in scores:
        sentences.append("No mask AP: the annotations have boxes only.")
    elif without:
        sentences.append(
            f"{count_of(without, 'object')} of the annotations without a mask: the box AP counts them; the mask AP "
            "ignores detections of them."
        )
    with_objects = sum(map(bool, objects))
    if with_objects < FEW_IMAGES:
        sentences.append(
            f"Only {count_of(with_objects, 'scored image')} with objects: an average over fewer than {FEW_IMAGES} may "
            "be off by several points, and the average of a size with few objects by more."
        )
    return sentences


def _model(results: Results, run: str) -> "ModelConfig | None":
    """Return the configuration of the run's model, from its preset or weights file; None if that is gone."""
    record = next(record for record in results.records if record.run == run)
    section = record.spec.get("model", {})
    # The record of a later version may hold values that this one does not know; then the annotations' classes decide.
    with contextlib.suppress(HtcError, ValueError):
        model = ModelSection(**{key: section[key] for key in ("preset", "weights") if key in section})
        weights = weights_here(model)
        if model.weights in {"coco", "untrained"} or (weights is not None and weights.is_file()):
            return resolve_config(model, weights)
    return None


class _RunImages:
    """The run's images, by the names that annotations may use for them."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.notes: list[str] = []
        self._images: dict[str, _RunImage] = {}
        self._by_name: dict[str, dict[str, str]] = {}
        for row in rows:
            size = None if row["width"] is None else (row["height"], row["width"])
            self._images[row["uri"]] = _RunImage(row["image_id"], size)
            for path in _paths(row["uri"]):
                self._by_name.setdefault(_last(path), {})[path] = row["uri"]

    def find_size(self, name: str) -> tuple[int, int] | None:
        """Return (height, width) in pixels of the image with a file name, if there is exactly one."""
        uris = self._find(_plain(name)) or self._alike(_plain(name))
        return self._images[uris[0]].size if len(uris) == 1 else None

    def match(self, truth: CocoAnnotations, uri: str) -> tuple[dict[int, int], list[str]]:
        """Match the annotated images: return the index in `truth.images` by image_id, and the names that are missing.

        Raises:
            InputError: one name fits several images, or several names fit one image.
        """
        names = [_plain(image.file_name) for image in truth.images]
        found = [self._find(name) for name in names]
        if not any(found):
            found = [self._alike(name) for name in names]
            if any(found):
                self.notes.append(
                    f"The folders in {uri} are not those of the run; images are matched by the last part of the name."
                )
        places: dict[str, int] = {}
        missing = []
        for place, (image, uris) in enumerate(zip(truth.images, found, strict=True)):
            if len(uris) > 1:
                raise InputError(
                    f"{image.file_name} of the annotations is the end of several uris of the run: "
                    f"{', '.join(uris[:2])}."
                )
            if not uris:
                missing.append(image.file_name)
                continue
            other = truth.images[places.setdefault(uris[0], place)]
            if other is not image:
                raise InputError(
                    f"{uri} has {uris[0]} twice: as image {other.image_id} ({other.file_name}) and as image "
                    f"{image.image_id} ({image.file_name}); merge the two, or remove one."
                )
        return {self._images[found_uri].image_id: place for found_uri, place in places.items()}, missing

    def refuse_other_sizes(self, truth: CocoAnnotations, numbers: Mapping[int, int], uri: str) -> None:
        """Compare the sizes of annotated images and images of the run.

        Raises:
            InputError: sizes differ; the message names both.
        """
        sizes = {image.image_id: image.size for image in self._images.values()}
        others = []
        for number, place in numbers.items():
            image, size = truth.images[place], sizes[number]
            if size is not None and size != (image.height, image.width):
                others.append(
                    f"{image.file_name} has {image.width} x {image.height} pixels there and {size[1]} x {size[0]} in "
                    "the run"
                )
        if others:
            raise InputError(
                f"{uri} is of images of another size: {others[0]} ({count_of(len(others), 'such image')} of "
                f"{len(numbers)}). Masks and boxes cannot be compared; annotate the images as the run read them "
                "(upright, rotated by EXIF), or run over the annotated images."
            )

    def _find(self, name: str) -> list[str]:
        """Return the images whose uri is, or after a slash ends with, a file name."""
        paths = self._by_name.get(_last(name), {})
        return list(dict.fromkeys(uri for path, uri in paths.items() if path == name or path.endswith("/" + name)))

    def _alike(self, name: str) -> list[str]:
        return list(dict.fromkeys(self._by_name.get(_last(name), {}).values()))


def _paths(uri: str) -> set[str]:
    """Return the paths that may end with a file name: that of a tar's member, and a web address also unquoted."""
    path = uri.removeprefix("tar://").rpartition("::")[0] if uri.startswith("tar://") else uri
    paths = {path.lstrip("/")}
    if scheme_of(path) in WEB_SCHEMES:
        paths.add(unquote(path))
    return paths


def _plain(name: str) -> str:
    """Return a file name with Unix slashes, and none at the beginning."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain.lstrip("/")


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _detections(
    rows: Sequence[Mapping[str, Any]], annotations: CocoAnnotations, numbers: Mapping[int, int]
) -> list[dict[str, Any]]:
    category_ids = dict(zip(annotations.classes, annotations.category_ids, strict=True))
    detections = []
    for row in rows:
        if row["image_id"] not in numbers or row["category"] not in category_ids:
            continue
        box = row["bbox"]
        detection = {
            "image_id": numbers[row["image_id"]],
            "category_id": category_ids[row["category"]],
            "score": row["score"],
            "bbox": [box["x"], box["y"], box["width"], box["height"]],
        }
        if row["mask"] is not None:
            detection["segmentation"] = _checked_mask(row)
        detections.append(detection)
    return detections


def _checked_mask(row: Mapping[str, Any]) -> Mapping[str, Any]:
    # pycocotools does not check the counts, and loops forever for some that do not fill the mask.
    try:
        decode_lengths(row["mask"])
    except ValueError as error:
        raise InputError(f"A mask of the image {row['image_id']} in the tables is damaged: {error}.") from None
    mask: Mapping[str, Any] = row["mask"]
    return mask


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")


def _percent(score: float) -> str:
    # pycocotools returns -1 if there is no such object.
    return "-" if score < 0 else f"{100 * score:.1f}"
