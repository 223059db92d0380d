"""Splits a data set into training and validation images, each class by its share."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Set

from htc_model.training.annotations import AnnotationError


def choose_validation(classes_of: Mapping[str, Set[int]], share: float, seed: int) -> frozenset[str]:
    """Choose the images that are held out: the same for the same names, share and seed, in whatever order they come.

    Rare classes first, as many images of each class are taken as its share says (iterative stratification, Sechidis et
    al., On the Stratification of Multi-Label Data, ECML PKDD 2011), and at least one where there are two or more; then
    images without objects by their share.

    Args:
        classes_of: the labels on each image, by file name.
        share: in (0, 1). seed: another one takes other images.

    Raises:
        AnnotationError: there is one image only, or the share leaves none to train on.
    """
    if len(classes_of) < 2:
        raise AnnotationError(f"val_share needs two images or more, and there is {len(classes_of)}.")
    order = sorted(classes_of, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    counts = Counter(label for labels in classes_of.values() for label in labels)
    chosen: set[str] = set()
    for label, count in sorted(counts.items(), key=lambda pair: (pair[1], pair[0])):
        wanted = max(round(share * count), 1 if count > 1 else 0)
        taken = sum(label in classes_of[name] for name in chosen)
        candidates = [name for name in order if label in classes_of[name] and name not in chosen]
        chosen.update(candidates[: max(wanted - taken, 0)])
    empty = [name for name in order if not classes_of[name]]
    chosen.update(empty[: round(share * len(empty))])
    if not chosen:
        chosen.add(order[0])
    if len(chosen) == len(classes_of):
        raise AnnotationError(f"val_share {share:g} of {len(classes_of)} images leaves none to train on; lower it.")
    return frozenset(chosen)
