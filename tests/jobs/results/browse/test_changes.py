"""Comparisons of runs that are not both whole: incremental ones, and the newest rows of all runs."""

import re
from pathlib import Path

from PIL import Image

from tests.jobs.results.browse.conftest import OpenApp
from tests.jobs.results.browse.test_pages import names_in
from tests.support.builders.browsed_outputs import Found, write_photos, write_run


def changed_in(page: str) -> list[str]:
    """The names in the table of images that differ."""
    return [
        re.sub(r"<.*?>", "", cell).split()[0] for cell in re.findall(r'<td class="name">(.*?)</td>', page, re.DOTALL)
    ]


def test_what_an_incremental_run_leaves_out_has_not_changed(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", ["a.png", "b.png", "c.png"])
    write_run(photos, tmp_path / "out", "monday")
    # An incremental run over what is new or changed: a.png is neither, and c.png is gone.
    (photos / "c.png").unlink()
    Image.new("RGB", (80, 60), (9, 9, 9)).save(photos / "b.png")
    write_photos(photos, ["new.png"])
    found = {"b.png": (Found("dog", 0.9),)}
    handle = write_run(photos, tmp_path / "out", "tuesday", found, mode="incremental")
    assert handle.name == "tuesday"
    client = open_app(tmp_path / "out")
    page = client.get("/compare?a=monday&b=tuesday&all=1").text
    assert changed_in(page) == ["b.png", "new.png"]
    assert "another picture: not compared" in page
    assert "the same within the limits" not in page
    address = f"/api/changes?a=monday&b=tuesday&uri={photos / 'b.png'}"
    assert "not compared" in client.get(address).json()["note"]
    page = client.get("/compare?a=monday&b=current&all=1").text
    assert changed_in(page) == ["b.png", "c.png", "new.png"]
    assert names_in(client.get("/?run=current").text) == ["a.png", "b.png", "new.png"]


def test_pages_of_changes_follow_each_other(open_app: OpenApp, tmp_path: Path) -> None:
    names = [f"{number:03d}.png" for number in range(60)]
    photos = write_photos(tmp_path / "photos", names)
    write_run(photos, tmp_path / "out", "monday", shard_images=20)
    other = {name: (Found("person", 0.9, (30, 20, 30, 20)),) for name in names[::2]}
    write_run(photos, tmp_path / "out", "tuesday", other, shard_images=20)
    client = open_app(tmp_path / "out")
    first = client.get("/compare").text
    assert changed_in(first) == names[:48:2]
    (after,) = re.findall(r'rel="next" href="([^"]*)"', first)
    assert changed_in(client.get(after.replace("&amp;", "&")).text) == names[48::2]
    assert changed_in(client.get("/compare?name=/04").text) == ["040.png", "042.png", "044.png", "046.png", "048.png"]
