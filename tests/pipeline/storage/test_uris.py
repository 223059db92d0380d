"""Names are not changed; patterns match as in a shell."""

import pytest

from pipeline.errors import SpecError
from pipeline.inputs.image_ref import image_id
from pipeline.storage.uris import display_uri, glob_pattern, join, resolve, suffix_of


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("*.jpg", ["a.jpg", ".jpg"], ["d/a.jpg", "a.JPG"]),
        ("**/*.jpg", ["a.jpg", "d/a.jpg", "d/e/a.jpg"], ["a.png"]),
        ("d/**", ["d/a", "d/e/f"], ["d", "e/d/a"]),
        ("a?c", ["abc", "a\nc"], ["a/c", "ac"]),
        ("[a-c]x[!0-9]", ["axy", "cx-"], ["dxy", "ax1"]),
        ("[x", ["[x"], ["x"]),
        ("a.b+(c)", ["a.b+(c)"], ["aXb+(c)"]),
        ("[^]]", ["^]"], ["x]"]),
        ("[!]x]", ["a"], ["]", "x"]),
        ("[]]", ["]"], ["a"]),
    ],
)
def test_globs_match_like_a_shell(pattern: str, matching: list[str], others: list[str]) -> None:
    compiled = glob_pattern(pattern)
    assert [name for name in matching if not compiled.fullmatch(name)] == []
    assert [name for name in others if compiled.fullmatch(name)] == []


def test_a_reversed_range_is_refused() -> None:
    with pytest.raises(SpecError, match=r"z-a"):
        glob_pattern("[z-a].jpg")


@pytest.mark.parametrize(
    ("entry", "folder", "expected"),
    [
        ("a.jpg", "/photos", "/photos/a.jpg"),
        ("./x/../a b%20#.jpg", "/photos", "/photos/a b%20#.jpg"),
        ("../a.jpg", "s3://bucket/lists", "s3://bucket/a.jpg"),
        ("/else/a.jpg", "s3://bucket/lists", "/else/a.jpg"),
        ("s3://other/a.jpg", "/photos", "s3://other/a.jpg"),
        ("file:///p/a%20b.jpg", "/photos", "/p/a b.jpg"),
        ("file://localhost/p/a%2520b.jpg", "s3://bucket/lists", "/p/a%20b.jpg"),
        ("file:///p/caf%E9.jpg", "/photos", "/p/caf\udce9.jpg"),
    ],
)
def test_listing_entries_resolve_against_the_listing(entry: str, folder: str, expected: str) -> None:
    assert resolve(entry, folder) == expected


def test_image_ids_are_fixed_for_all_time() -> None:
    # Computed with hashlib.blake2b(uri, digest_size=8), big-endian, signed: tables of years must still join.
    assert image_id("s3://bucket/a.jpg") == -1679253614160919303
    assert image_id("/a.jpg") != image_id("/A.jpg")
    assert -(2**63) <= image_id("/\udcff.jpg") < 2**63


def test_names_that_are_not_unicode_are_shown_escaped() -> None:
    assert display_uri("/caf\udce9.jpg") == r"/caf\xe9.jpg"
    assert display_uri("/café.jpg") == "/café.jpg"


def test_parts_join_with_single_slashes_and_suffixes_are_lower_case() -> None:
    assert join("s3://b/", "images", "run=a") == "s3://b/images/run=a"
    assert (suffix_of("/d.x/a.JPG"), suffix_of("/d.x/a"), suffix_of("/.jpg")) == (".jpg", "", "")
