"""Links in folders: each real folder is walked once, under a name that does not depend on where a walk begins."""

import os
from pathlib import Path

import pytest

from pipeline.errors import NotFoundError
from pipeline.inputs.image_ref import ImageRef
from pipeline.inputs.listing import SourceNotes, list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage.local import walk_files
from pipeline.storage.storage import Storage


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(root: Path, after: str = "") -> list[str]:
    found = [path for path, _ in walk_files(str(root), f"{root}/{after}" if after else "")]
    return [path.removeprefix(f"{root}/") for path in found]


def listed(uri: Path | str, notes: SourceNotes | None = None) -> list[ImageRef]:
    return list(list_images(InputSection(uri=str(uri)), Storage(), notes=notes))


def test_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    # Seven folders, each with a link to every other: as many ways through them as there are orders.
    for one in range(7):
        make(tmp_path, f"d{one}/{one}.jpg")
        for other in range(7):
            (tmp_path / f"d{one}/to{other}").symlink_to(tmp_path / f"d{other}")
    notes = SourceNotes()
    assert [ref.uri for ref in listed(tmp_path, notes)] == [f"{tmp_path}/d{one}/{one}.jpg" for one in range(7)]
    assert notes.links == 49
    assert notes.link == f"{tmp_path}/d0/to0 -> {tmp_path}/d0"


@pytest.fixture
def maze(tmp_path: Path) -> Path:
    """Links to folders inside, outside, above, hidden, and of each other."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    make(outside, "deep/o.jpg", "p.jpg")
    make(root, "m/a.jpg", "m/n/b.jpg", ".hidden/h.jpg", "z.jpg")
    for link, target in {
        "a-early": root / "m",
        "b-out": outside / "deep",
        "c/again": outside,
        "m/loop": root / "m",
        "m/up": root,
        "n-hidden": root / ".hidden",
        "o-hidden": root / ".hidden",
        "q-above": tmp_path,
        "x-out": outside / "deep",
        "y.jpg": root / "m/a.jpg",
        "y2.jpg": root / "none.jpg",
    }.items():
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
    (outside / "back").symlink_to(root / "m")
    return root


MAZE = [
    "b-out/o.jpg",
    "c/again/p.jpg",
    "m/a.jpg",
    "m/n/b.jpg",
    "n-hidden/h.jpg",
    "y.jpg",
    "y2.jpg",
    "z.jpg",
]


def test_a_real_folder_keeps_its_own_name_and_one_outside_the_first_links(maze: Path) -> None:
    assert names(maze) == MAZE
    # A link to a file is an image of its own; a dangling link is a missing image.
    assert [status is None for path, status in walk_files(str(maze)) if path.endswith("y2.jpg")] == [True]


@pytest.mark.parametrize("place", range(len(MAZE)))
def test_a_walk_resumes_behind_any_name(maze: Path, place: int) -> None:
    assert names(maze, MAZE[place]) == MAZE[place + 1 :]


def test_the_root_may_be_a_link_itself_and_its_name_is_kept(maze: Path) -> None:
    link = maze.parent / "link"
    link.symlink_to(maze)
    assert names(link) == MAZE
    assert names(maze / "m/up/m/n") == ["b.jpg"]


def test_a_link_named_by_a_pattern_is_entered(maze: Path) -> None:
    assert [ref.uri for ref in listed(f"{maze}/a-early/*.jpg")] == [f"{maze}/a-early/a.jpg"]
    section = InputSection(uri=str(maze), glob="a-early/n/**/*.jpg")
    assert [ref.uri for ref in list_images(section, Storage())] == [f"{maze}/a-early/n/b.jpg"]


def test_links_do_not_cost_a_stat_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"{one}/{two}.jpg" for one in range(10) for two in range(10)))
    asked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **_: asked.append(str(path)) or real(path))
    assert len(names(tmp_path)) == 100
    assert len(asked) == 1


def test_a_link_to_itself_is_one_row_beside_the_others(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "z.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "one.jpg").symlink_to("two.jpg")
    (tmp_path / "two.jpg").symlink_to("one.jpg")
    (tmp_path / "long.jpg").symlink_to("x" * 300)
    (tmp_path / "through.jpg").symlink_to("a.jpg/b.jpg")
    expected = ["a.jpg", "long.jpg", "loop.jpg", "one.jpg", "through.jpg", "two.jpg", "z.jpg"]
    assert names(tmp_path) == expected
    assert names(tmp_path, "long.jpg") == expected[2:]
    read = {}
    for ref in listed(tmp_path):
        try:
            read[ref.uri.rpartition("/")[2]] = read_image(ref, Storage()).decode()
        except NotFoundError:
            continue
    assert read == {"a.jpg": "a.jpg", "z.jpg": "z.jpg"}
    with pytest.raises(NotFoundError, match=r"loop\.jpg"):
        listed(tmp_path / "loop.jpg")


def test_names_in_a_folder_are_files_and_links_that_lead_nowhere(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "in/.hidden.jpg", "in/folder/b.jpg")
    (tmp_path / "in/absent.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "in/linked.jpg").symlink_to(tmp_path / "in/a.jpg")
    (tmp_path / "in/loop.jpg").symlink_to(tmp_path / "in/loop.jpg")
    (tmp_path / "in/elsewhere").symlink_to(tmp_path / "in/folder")
    found = sorted(Storage().list_names(str(tmp_path / "in")))
    assert found == ["a.jpg", "absent.jpg", "linked.jpg", "loop.jpg"]


def test_names_that_are_not_utf_8_are_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    raw = sorted([b"a.jpg", b"\xc3\xa9.jpg", b"\xff.jpg", b"\xf0\x9f\x98\x80.jpg", b"z/\x80.jpg", b"z0.jpg"])
    for name in raw:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    assert [os.fsencode(name) for name in names(tmp_path)] == raw
