"""Checks of classes: names, counts, and whether the splits have the same ones."""

from collections.abc import Mapping
from statistics import median

from htc_model.training.annotations import CocoAnnotations
from pipeline.datasets.class_names import similar_names
from pipeline.datasets.findings import ClassCounts, Findings

RARE_OBJECTS = 20
_IMBALANCE = 100
# As `htc evaluate` warns: the standard error of a share of 100 is up to five points.
_FEW_IMAGES = 100


def count_classes(splits: Mapping[str, CocoAnnotations]) -> list[ClassCounts]:
    """Count the objects of each class, crowds not among them, in the order of the category ids."""
    objects: dict[str, dict[str, int]] = {}
    images: dict[str, dict[str, int]] = {}
    sides: dict[str, list[float]] = {}
    ids: dict[str, int] = {}
    for split, annotations in splits.items():
        for name, number in zip(annotations.classes, annotations.category_ids, strict=True):
            ids.setdefault(name, number)
            objects.setdefault(name, {})[split] = 0
            images.setdefault(name, {})[split] = 0
        for image in annotations.images:
            names = [annotations.classes[entry.label] for entry in image.objects if not entry.is_crowd]
            for name in names:
                objects[name][split] += 1
            for name in set(names):
                images[name][split] += 1
            for entry in image.objects:
                if not entry.is_crowd:
                    sides.setdefault(annotations.classes[entry.label], []).append(entry.area**0.5)
    return [
        ClassCounts(name, ids[name], objects[name], images[name], median(sides[name]) if name in sides else None)
        for name in sorted(ids, key=lambda each: (ids[each], each))
    ]


def check_classes(splits: Mapping[str, CocoAnnotations], counts: list[ClassCounts], findings: Findings) -> None:
    """Check names and counts; the first split is trained on, the others are scored on."""
    trained, *scored = splits
    for names in similar_names(each.name for each in counts):
        findings.add("similar-names", trained, " and ".join(repr(name) for name in names))
    for each in counts:
        others = sum(each.objects.get(split, 0) for split in scored)
        own = each.objects.get(trained, 0)
        if not own and others:
            findings.add("class-not-trained", trained, f"{each.name} ({others} in {', '.join(scored)})")
        elif not own:
            findings.add("empty-class", trained, each.name)
        elif own < RARE_OBJECTS:
            findings.add("rare-class", trained, f"{each.name} ({own})")
        validated = scored[0] if scored else None
        if own and validated is not None and not each.objects.get(validated, 0):
            findings.add("class-not-evaluated", validated, each.name)
    _check_balance(trained, counts, findings)
    _check_crowds(splits, findings)
    for split in scored:
        usable = sum(any(not entry.is_crowd for entry in image.objects) for image in splits[split].images)
        if usable < _FEW_IMAGES:
            findings.add("few-to-score", split, f"{split} ({usable})")


def _check_balance(trained: str, counts: list[ClassCounts], findings: Findings) -> None:
    most = max((each.objects.get(trained, 0) for each in counts), default=0)
    for each in counts:
        own = each.objects.get(trained, 0)
        if 0 < own * _IMBALANCE < most:
            findings.add("imbalance", trained, f"{each.name} ({own} of {most:,})")


def _check_crowds(splits: Mapping[str, CocoAnnotations], findings: Findings) -> None:
    for split, annotations in splits.items():
        crowds, objects = [0] * len(annotations.classes), [0] * len(annotations.classes)
        for image in annotations.images:
            for entry in image.objects:
                (crowds if entry.is_crowd else objects)[entry.label] += 1
        for name, crowded, plain in zip(annotations.classes, crowds, objects, strict=True):
            if crowded > plain:
                findings.add("mostly-crowds", split, f"{name} ({crowded} of {crowded + plain})")


def check_categories(splits: Mapping[str, CocoAnnotations], findings: Findings) -> None:
    """Compare the categories of each split with those of the first."""
    (first, reference), *others = splits.items()
    known = dict(zip(reference.classes, reference.category_ids, strict=True))
    for split, annotations in others:
        own = dict(zip(annotations.classes, annotations.category_ids, strict=True))
        for name in dict.fromkeys([*known, *own]):
            if known.get(name) != own.get(name):
                ids = [
                    f"{at}: {'absent' if number is None else number}"
                    for at, number in ((first, known.get(name)), (split, own.get(name)))
                ]
                findings.add("categories-differ", split, f"{name} ({', '.join(ids)})")
