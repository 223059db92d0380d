"""What a run's summary says of images that failed."""

import pytest

from pipeline.runs.summary import judge


@pytest.mark.parametrize(
    ("images", "errors", "allowed"),
    [
        (1200, 90, "5.0%"),
        (1, 1, "5.0%"),
        (8, 6, "4 of so few (max_errors 5, and at most half)"),
        (60, 6, "5 of so few (max_errors 5, and at most half)"),
        (200, 11, "5.0%"),
    ],
)
def test_the_allowed_number_is_the_one_that_was_judged_by(images: int, errors: int, allowed: str) -> None:
    outcome, reason = judge(
        images=images,
        images_done=images,
        errors=errors,
        max_error_rate=0.05,
        max_errors=5,
        has_bug=False,
        is_interrupted=False,
    )
    assert outcome == "over_error_budget"
    assert reason.startswith(f"{errors} of {images:,} image{'' if images == 1 else 's'} failed (")
    assert reason.endswith(f"; allowed are {allowed}.")
