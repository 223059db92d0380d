"""Splits a data set into train, val and test: stratified by class, with related images together."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.datasets.assignment import Group, assign_groups
from pipeline.datasets.formats.coco import is_coco
from pipeline.datasets.image_facts import ImageFacts, find_alike, read_facts
from pipeline.datasets.layout import IMAGES, SPLITS, Split, json_name, locate_images, write_json
from pipeline.errors import InputError, OutputOccupiedError, SpecError
from pipeline.inputs.coco_files import read_coco
from pipeline.machine_limits import usable_cpus
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path

_MOST_THREADS = 32


@dataclass(frozen=True)
class SplitOptions:
    """How a data set is split.

    val, test: their shares of the images. seed: another one gives another split. group_by: "folder", or a regular
    expression; images whose names match it with equal groups (or equal matches) stay together.
    finds_equal: images of equal content stay together; that reads each image. finds_alike: so do images that look
    alike; that decodes each image. is_fresh: forget an earlier split in the same folder, whose images else stay where
    they are.
    """

    val: float = 0.1
    test: float = 0.0
    seed: int = 0
    group_by: str | None = None
    finds_equal: bool = True
    finds_alike: bool = False
    is_fresh: bool = False


@dataclass(frozen=True)
class SplitResult:
    """What was written.

    files: the JSON file of each split. images, objects: counts by split; by class in `classes`. kept: images that an
    earlier split had placed. groups: how many groups of more than one image there are, and `grouped` images in them.
    notes: sentences for the user.
    """

    files: Mapping[str, Path]
    images: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    kept: int
    groups: int
    grouped: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return what --json writes."""
        return {
            "files": {split: str(path) for split, path in self.files.items()},
            "images": dict(self.images),
            "classes": {name: dict(counts) for name, counts in self.classes.items()},
            "kept": self.kept,
            "groups": self.groups,
            "grouped_images": self.grouped,
            "notes": list(self.notes),
        }


def split_dataset(
    whole: Split,
    to: Path,
    options: SplitOptions | None = None,
    *,
    storage: Storage | None = None,
    on_image: Callable[[int, int], None] = lambda _done, _all: None,
) -> SplitResult:
    """Split a data set and write a JSON file for each split.

    Args:
        whole: the data set's one JSON file; see `find_whole`.
        to: the folder for train.json, val.json and test.json; if it is not that of the images, it gets a link to them.
        on_image: called after each image that is read with how many are done, and how many there are.

    Raises:
        SpecError: the shares or the regular expression are not usable, or the file is not COCO's JSON.
        InputError: there are too few images.
        OutputOccupiedError: the folder's `images` is something else than this data set's.
    """
    options, storage = options or SplitOptions(), storage or Storage()
    shares = _shares(options)
    document = read_coco(whole.annotations, storage)
    if not is_coco(document):
        raise SpecError(
            f"{whole.annotations} is not a COCO annotation file: it needs the lists images, annotations and categories."
        )
    images = [
        image for image in document["images"] if isinstance(image, dict) and isinstance(image.get("file_name"), str)
    ]
    if len(images) < len(shares):
        raise InputError(f"{whole.annotations} has {len(images)} images, too few for {len(shares)} splits.")
    names = [image["file_name"] for image in images]
    folder = locate_images(whole, names, storage)
    notes: list[str] = []
    earlier = {} if options.is_fresh else _read_earlier(to, shares, storage)
    related = _Related(names, options.group_by, notes)
    if options.finds_equal or options.finds_alike:
        _join_equal(related, _read_all(names, folder, storage, options, on_image), notes)
    groups, members = _build_groups(images, document, related, earlier, notes)
    assigned = assign_groups(groups, shares, seed=options.seed)
    split_of = {names[at]: split for split, group in zip(assigned, members, strict=True) for at in group}
    missing = [split for split in shares if split not in assigned]
    if missing:
        raise InputError(
            f"No image is left for {missing[0]}: {len(groups)} groups of {len(images)} images cannot be split so; "
            "group fewer images together, or take another --seed."
        )
    _link_images(to, folder, notes)
    files = _write(document, images, split_of, shares, to)
    several = [group for group in members if len(group) > 1]
    return SplitResult(
        files=files,
        images={split: sum(each == split for each in split_of.values()) for split in shares},
        classes=_count_classes(document, images, split_of, shares),
        kept=sum(name in earlier for name in names),
        groups=len(several),
        grouped=sum(map(len, several)),
        notes=tuple(notes),
    )


def _shares(options: SplitOptions) -> dict[str, float]:
    if not (0 <= options.val < 1 and 0 <= options.test < 1 and 0 < options.val + options.test < 1):
        raise SpecError(
            f"--val-share {options.val:g} and --test-share {options.test:g} must be shares of the images: at "
            "least one above 0, together below 1."
        )
    shares = {"train": 1 - options.val - options.test, "val": options.val, "test": options.test}
    return {split: share for split, share in shares.items() if share > 0}


def _read_earlier(to: Path, shares: Mapping[str, float], storage: Storage) -> dict[str, str]:
    """Return where an earlier split of the folder has each image."""
    earlier: dict[str, str] = {}
    for split in SPLITS:
        path = to / json_name(split)
        if not path.exists():
            continue
        document = read_coco(str(path), storage)
        if not is_coco(document):
            raise OutputOccupiedError(f"{path} is not a COCO annotation file; name another folder by --to.")
        if split not in shares:
            raise SpecError(
                f"{path} is of an earlier split with {split}; give --{split}-share, or --resplit to split anew."
            )
        for image in document["images"]:
            if isinstance(image, dict) and isinstance(image.get("file_name"), str):
                earlier[image["file_name"]] = split
    return earlier


class _Related:
    """Which images belong together, as union-find over their positions.

    Args:
        names: their file names; a name that is listed twice is one image.
        group_by: see `SplitOptions`.
        notes: gets a sentence if the expression does not match all names.

    Raises:
        SpecError: the expression is not one, or matches no name.
    """

    def __init__(self, names: Sequence[str], group_by: str | None, notes: list[str]) -> None:
        self._parents = list(range(len(names)))
        self._firsts: dict[object, int] = {}
        # The group that each file name says, None for none.
        self.keys = [_group_key(name, group_by) for name in names]
        unmatched = sum(key is None for key in self.keys)
        if group_by is not None and unmatched:
            if unmatched == len(names):
                raise SpecError(f"--group-by {group_by!r} matches no file name, such as {names[0]}.")
            notes.append(
                f"--group-by matches {len(names) - unmatched:,} of {len(names):,} file names; the others stand alone."
            )
        for at, (name, key) in enumerate(zip(names, self.keys, strict=True)):
            self.join_by(("name", name), at)
            if key is not None:
                self.join_by(("group", key), at)

    def join_by(self, key: object, at: int) -> None:
        """Join an image with all that have the same key."""
        self.join(self._firsts.setdefault(key, at), at)

    def join(self, one: int, other: int) -> None:
        """Join two images and all that belong to them."""
        first, second = sorted((self.find(one), self.find(other)))
        self._parents[second] = first

    def find(self, at: int) -> int:
        """Return the first of the images that belong together with this one."""
        while self._parents[at] != at:
            self._parents[at] = self._parents[self._parents[at]]
            at = self._parents[at]
        return at


def _join_equal(related: _Related, facts: Sequence[ImageFacts], notes: list[str]) -> None:
    """Join images of equal content, and those that look alike where their pixels were decoded."""
    unread = [each for each in facts if each.digest is None]
    if unread:
        notes.append(
            f"{len(unread):,} of {len(facts):,} images cannot be read, such as {unread[0].uri}; whether they are equal "
            "to others is not known."
        )
    for at, each in enumerate(facts):
        if each.digest is not None:
            related.join_by(("content", each.digest), at)
    for one, other in find_alike([each.look for each in facts]):
        related.join(one, other)


def _read_all(
    names: Sequence[str],
    folder: str,
    storage: Storage,
    options: SplitOptions,
    on_image: Callable[[int, int], None],
) -> list[ImageFacts]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_image(done, len(names))

    threads = usable_cpus() if options.finds_alike else min(_MOST_THREADS, storage.read_concurrency(folder))
    uris = [join(folder, name) for name in names]
    return list(read_facts(uris, storage, reads_pixels=options.finds_alike, threads=max(1, threads), on_image=count))


def _group_key(name: str, group_by: str | None) -> str | None:
    """Return the group that a file name says; None for none.

    Raises:
        SpecError: the regular expression is not one.
    """
    if group_by is None:
        return None
    if group_by == "folder":
        return PurePosixPath(name).parent.as_posix()
    try:
        match = re.search(group_by, name)
    except re.error as error:
        raise SpecError(f"--group-by {group_by!r} is not a regular expression ({error}), nor `folder`.") from None
    if match is None:
        return None
    return "\0".join(part or "" for part in match.groups()) if match.groups() else match[0]


def _build_groups(
    images: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
    related: _Related,
    earlier: Mapping[str, str],
    notes: list[str],
) -> tuple[list[Group], list[list[int]]]:
    """Return the groups, and the positions of the images of each."""
    members: dict[int, list[int]] = defaultdict(list)
    for at in range(len(images)):
        members[related.find(at)].append(at)
    classes = _classes_of(document)
    groups = []
    torn = 0
    for group in members.values():
        names = sorted(images[at]["file_name"] for at in group)
        counts: dict[str, int] = defaultdict(int)
        for at in group:
            for name in classes.get(_hashable(images[at].get("id")), ()):
                counts[name] += 1
        places = [earlier[name] for name in names if name in earlier]
        # Where an earlier split has torn a group, it goes where its images score nothing: into training.
        split = None if not places else places[0] if len(set(places)) == 1 else "train"
        torn += len(set(places)) > 1
        # A group's own key stays the same when images are added to it.
        key = min((f"group {key}" for at in group if (key := related.keys[at]) is not None), default=names[0])
        groups.append(Group(key, len(group), counts, split))
    if torn:
        notes.append(f"{torn:,} groups were torn apart by the earlier split; they are in train now.")
    return groups, list(members.values())


def _classes_of(document: Mapping[str, Any]) -> dict[Any, set[str]]:
    """Return the names of the classes in each image, by its id; crowds do not count."""
    names = {
        _hashable(each.get("id")): str(each.get("name")) for each in document["categories"] if isinstance(each, dict)
    }
    found: dict[Any, set[str]] = defaultdict(set)
    for annotation in document["annotations"]:
        if isinstance(annotation, dict) and not annotation.get("iscrowd"):
            name = names.get(_hashable(annotation.get("category_id")))
            if name is not None:
                found[_hashable(annotation.get("image_id"))].add(name)
    return found


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else None


def _link_images(to: Path, folder: str, notes: list[str]) -> None:
    """Give a new folder a link to the images, where its JSON files would not find them."""
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"{to} cannot be written: {error.strerror or error}.") from error
    if not is_local(folder):
        notes.append(f"The images stay where they are; give --images {folder} to htc dataset check and to htc train.")
        return
    images, wanted = to / IMAGES, Path(local_path(folder)).resolve()
    if images.exists() or images.is_symlink():
        if images.resolve() != wanted:
            raise OutputOccupiedError(
                f"{images} is not the folder of this data set's images, {wanted}; name another --to."
            )
        return
    if to.resolve() == wanted:
        return
    try:
        images.symlink_to(wanted)
    except OSError as error:
        raise SpecError(f"{images} cannot be written: {error.strerror or error}.") from error


def _write(
    document: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    split_of: Mapping[str, str],
    shares: Mapping[str, float],
    to: Path,
) -> dict[str, Path]:
    files = {}
    for split in SPLITS:
        if split not in shares:
            # Of an earlier split, which --resplit forgets.
            (to / json_name(split)).unlink(missing_ok=True)
            continue
        own = [image for image in images if split_of[image["file_name"]] == split]
        ids = {_hashable(image.get("id")) for image in own}
        part = {
            **document,
            "images": own,
            "annotations": [
                each
                for each in document["annotations"]
                if isinstance(each, dict) and _hashable(each.get("image_id")) in ids
            ],
        }
        files[split] = to / json_name(split)
        write_json(files[split], part)
    return files


def _count_classes(
    document: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    split_of: Mapping[str, str],
    shares: Mapping[str, float],
) -> dict[str, dict[str, int]]:
    """Count the images with each class in each split."""
    classes = _classes_of(document)
    names = [str(each.get("name")) for each in document["categories"] if isinstance(each, dict)]
    counts = {name: dict.fromkeys(shares, 0) for name in names}
    for image in images:
        for name in classes.get(_hashable(image.get("id")), ()):
            counts[name][split_of[image["file_name"]]] += 1
    return counts
