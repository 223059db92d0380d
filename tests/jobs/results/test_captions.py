"""Short names of images."""

import pytest

from jobs.results.drawing.captions import short_names


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/in/a.jpg", "/in/b.jpg"], ["a.jpg", "b.jpg"]),
        (["/in/a.jpg", "/in/sub/a.jpg", "/in/b.jpg"], ["in/a.jpg", "sub/a.jpg", "b.jpg"]),
        (["s3://b/x/1/a.jpg", "s3://b/y/1/a.jpg"], ["x/1/a.jpg", "y/1/a.jpg"]),
        (["/a.jpg", "/in/a.jpg"], ["a.jpg", "in/a.jpg"]),
        (["tar://a.jpg::/one.tar", "tar://a.jpg::/two.tar"], ["tar://a.jpg::/one.tar", "tar://a.jpg::/two.tar"]),
        (["/in/a.jpg", "/in/a.jpg"], ["a.jpg", "a.jpg"]),
        ([], []),
    ],
)
def test_images_shown_together_are_told_apart(uris: list[str], names: list[str]) -> None:
    assert short_names(uris) == names
