"""Class balance: images of rare classes are repeated in an epoch (repeat-factor sampling)."""

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from htc_model.training.annotations import CocoAnnotations


def repeat_factors(annotations: CocoAnnotations, threshold: float) -> NDArray[np.float64]:
    """Compute how often each image is taken in an epoch (Gupta et al., LVIS, arXiv:1908.03195, section 5, RFS).

    A class on the share f of the images has the factor max(1, sqrt(threshold / f)), an image the largest of its
    classes' factors. Crowds do not count.

    Args:
        threshold: the share of images from which on a class is frequent; 0 repeats nothing. LVIS takes 0.001 for 1,203
            classes; few classes need some 0.3.

    Returns:
        [N], at least 1.
    """
    labels = [{entry.label for entry in image.objects if not entry.is_crowd} for image in annotations.images]
    counts = Counter(label for present in labels for label in present)
    images = len(annotations.images)
    factors = {label: max(1.0, math.sqrt(threshold * images / count)) for label, count in counts.items()}
    return np.array([max((factors[label] for label in present), default=1.0) for present in labels])


def count_repeats(factors: NDArray[np.float64], offset: float) -> NDArray[np.int64]:
    """Count how often each image is taken in one epoch: its factor, rounded up or down.

    The images together are taken equally often in every epoch, so that all epochs have as many steps; which factors
    are rounded up changes with the offset (systematic sampling). Each image is taken at least once.

    Args:
        factors: [N], at least 1.
        offset: a random number in [0, 1), another one for each epoch.

    Returns:
        [N] counts, whose sum is that of the factors, rounded up.
    """
    if not len(factors):
        return np.zeros(0, np.int64)
    total = math.ceil(factors.sum() - 1e-9)
    edges = np.cumsum(factors) * (total / factors.sum())
    edges[-1] = total
    counts: NDArray[np.int64] = np.diff(np.floor(edges + offset).astype(np.int64), prepend=0)
    return counts
