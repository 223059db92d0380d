"""Which images and which of their instances `htc show` draws."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.results.image_lookup import ImageLookup, ImageRecord, Wanted
from jobs.results.show.request import ShowRequest
from jobs.results.show.truth import ShownSegments, ShownTruth
from jobs.terminal.console import say
from pipeline.errors import InputError

DEFAULT_SAMPLE = 16
# Low enough to keep instances that a person would accept, high enough to keep clutter out of the overlay.
DEFAULT_MIN_SCORE = 0.3
# Instances drawn per image if no score reaches the default, or scores mean nothing.
FALLBACK_INSTANCES = 5


@dataclass(frozen=True)
class InstanceRule:
    """Which of an image's instances are drawn: those that reach the score, or the best ones."""

    min_score: float = 0.0
    best: int | None = None
    categories: frozenset[str] = frozenset()

    def choose(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Choose from an image's rows, which begin with the highest score."""
        known = [row for row in rows if not self.categories or row["category"] in self.categories]
        return [row for row in known if row["score"] >= self.min_score][: self.best]


def choose_images(
    lookup: ImageLookup, request: ShowRequest, truth: ShownTruth | ShownSegments | None
) -> list[ImageRecord]:
    """Choose images by the filters; with a truth, only images that it names.

    Raises:
        InputError: no image is wanted.
    """
    is_spread = request.limit is None
    count = request.limit or request.sample or DEFAULT_SAMPLE
    min_score = request.min_score
    if min_score is None and lookup.is_trained:
        min_score = DEFAULT_MIN_SCORE
    image_ids = None if truth is None else tuple(truth.places)
    wanted = Wanted(tuple(request.statuses), tuple(request.categories), min_score, image_ids)
    images = lookup.choose(wanted, count, is_spread=is_spread)
    if images or not request.categories:
        if not images:
            raise InputError(_no_image(lookup, request, is_of_truth=truth is not None))
        return images
    known = lookup.categories()
    for category in request.categories:
        if category not in known:
            raise InputError(_no_category(lookup.run, category, known, request.noun))
    if request.min_score is None:
        # No instance of these categories reaches the default score; the best ones are drawn.
        images = lookup.choose(replace(wanted, min_score=None), count, is_spread=is_spread)
    if not images:
        names = " or ".join(request.categories)
        raise InputError(
            f"Run {lookup.run} has no image of the wanted status with an instance of {names} that scores at least "
            f"{min_score or 0:g}; give a lower --min-score."
        )
    return images


def instance_rule(lookup: ImageLookup, images: Sequence[ImageRecord], request: ShowRequest) -> InstanceRule:
    """Decide which instances are drawn; print a message if none reaches the score."""
    threshold = DEFAULT_MIN_SCORE if request.min_score is None else request.min_score
    categories = frozenset(request.categories)
    by_score = InstanceRule(threshold, None, categories)
    if all(image.status != "ok" for image in images):
        return by_score
    best = lookup.best_score(images, request.categories)
    if best is None:
        say("These images have no instances; they are drawn as they are.")
    elif request.min_score is None and not lookup.is_trained:
        say(
            f"The weights are untrained, so scores mean nothing: the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return InstanceRule(0.0, FALLBACK_INSTANCES, categories)
    elif request.min_score is None and best < threshold:
        say(
            f"No instance reaches {threshold:g} (the best score is {best:.3f}); "
            f"the best {FALLBACK_INSTANCES} of each image are drawn."
        )
        return InstanceRule(0.0, FALLBACK_INSTANCES, categories)
    elif best < threshold:
        say(f"No instance reaches {threshold:g}; the best score is {best:.3f}.")
    return by_score


def _no_image(lookup: ImageLookup, request: ShowRequest, *, is_of_truth: bool) -> str:
    if lookup.is_empty:
        return f"Run {lookup.run} has no rows yet; `htc status` shows how far it is."
    which = f" that {request.truth} names" if is_of_truth else ""
    statuses = " or ".join(request.statuses) or "any"
    return f"Run {lookup.run} has no image with the status {statuses}{which}; `htc query` shows the errors."


def _no_category(run: str, category: str, known: Sequence[str], noun: str) -> str:
    if not known:
        return f"Run {run} has no {noun}s, so none of the category {category}."
    close = difflib.get_close_matches(category.casefold(), known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known[:8])}{' …' if len(known) > 8 else ''}."
    return f"Run {run} has no {noun} of the category {category}; {hint}"
