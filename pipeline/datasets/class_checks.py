"""Checks of classes: names, counts, and whether the splits have the same ones."""

from collections.abc import Mapping, Sequence
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


def check_classes(
    splits: Mapping[str, CocoAnnotations], trained: Sequence[str], counts: Sequence[ClassCounts], findings: Findings
) -> None:
    """Check names and counts.

    Args:
        trained: the splits that are trained on; the others are scored on, the first of them to validate.
    """
    train, scored = trained[0], [split for split in splits if split not in trained]
    for names in similar_names(each.name for each in counts):
        findings.add("similar-names", train, " and ".join(repr(name) for name in names))
    own = {each.name: sum(each.objects.get(split, 0) for split in trained) for each in counts}
    for each in counts:
        others = sum(each.objects.get(split, 0) for split in scored)
        if not own[each.name] and others:
            findings.add("class-not-trained", train, f"{each.name} ({others} in {', '.join(scored)})")
        elif not own[each.name]:
            findings.add("empty-class", train, each.name)
        elif own[each.name] < RARE_OBJECTS:
            findings.add("rare-class", train, f"{each.name} ({own[each.name]})")
        if own[each.name] and scored and not each.objects.get(scored[0], 0):
            findings.add("class-not-evaluated", scored[0], each.name)
    most = max(own.values(), default=0)
    for name, number in own.items():
        if 0 < number * _IMBALANCE < most:
            findings.add("imbalance", train, f"{name} ({number} of {most:,})")
    _check_crowds(splits, findings)
    _check_scored({split: splits[split] for split in scored}, findings)


def _check_scored(scored: Mapping[str, CocoAnnotations], findings: Findings) -> None:
    for split, annotations in scored.items():
        usable = sum(any(not entry.is_crowd for entry in image.objects) for image in annotations.images)
        if usable < _FEW_IMAGES:
            findings.add("few-to-score", split, f"{split} ({usable})")


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
