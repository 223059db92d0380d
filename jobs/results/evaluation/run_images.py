"""The images of a run, found by the names or ids that annotations use for them."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from htc_model.training.annotations import CocoAnnotations, ImageAnnotations, ImageId
from pipeline.errors import InputError
from pipeline.storage.uris import WEB_SCHEMES, scheme_of
from pipeline.text import count_of


class MatchRule(enum.StrEnum):
    """How an annotated image is found in the run.

    name: the uri ends with its file name, or if none does with the last part of that. stem: the last parts are equal
        without the ending, in any case. id: the image's id in the file is the last part without its ending; numbers
        may have zeros before them.
    """

    # Not `name`, which every member of an enum has.
    file_name = "name"
    stem = "stem"
    id = "id"


@dataclass(frozen=True)
class RunImage:
    """One image of the run; size: (height, width) in pixels, None if it was not decoded."""

    image_id: int
    uri: str
    size: tuple[int, int] | None
    status: str


@dataclass(frozen=True)
class Matches:
    """Which annotated image is which of the run.

    places: index in `CocoAnnotations.images` by image_id. missing: file names that the run does not have.
    """

    places: Mapping[int, int]
    missing: tuple[str, ...]


class RunImages:
    """The run's images that annotations may mean, by the names that these may use for them."""

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        rule: MatchRule = MatchRule.file_name,
        *,
        names: frozenset[str] | None = None,
    ) -> None:
        """Keep the rows that may be annotated: a run can have millions more.

        Args:
            rows: of `images`: image_id, uri, width, height, status.
            names: from `names_in`; None keeps all rows.
        """
        self.notes: list[str] = []
        self.count = 0
        self._rule = rule
        self._example = ""
        self._images: dict[str, RunImage] = {}
        self._by_name: dict[str, dict[str, str]] = {}
        self._by_stem: dict[str, dict[str, str]] = {}
        self._by_id: dict[str, dict[str, str]] = {}
        for row in rows:
            self.count += 1
            self._example = self._example or row["uri"]
            stems = {path: _stem(path) for path in _paths(row["uri"])}
            if names is not None and not any(stem in names or _id_key(stem) in names for stem in stems.values()):
                continue
            size = None if row["width"] is None else (row["height"], row["width"])
            self._images[row["uri"]] = RunImage(row["image_id"], row["uri"], size, row["status"])
            for path, stem in stems.items():
                self._by_name.setdefault(_last(path), {})[path] = row["uri"]
                self._by_stem.setdefault(stem, {})[path] = row["uri"]
                self._by_id.setdefault(_id_key(stem), {})[path] = row["uri"]

    def by_id(self) -> dict[int, RunImage]:
        """Return the images by image_id."""
        return {image.image_id: image for image in self._images.values()}

    def find_size(self, name: str) -> tuple[int, int] | None:
        """Return (height, width) in pixels of the image with a file name, if there is exactly one."""
        plain = _plain(name)
        uris = self._find(plain) or self._alike(plain) or self._of_stem(_stem(plain))
        return self._images[uris[0]].size if len(uris) == 1 else None

    def match(self, truth: CocoAnnotations, uri: str, run: str) -> Matches:
        """Match the annotated images.

        Raises:
            InputError: none is found, one name fits several images, or several names fit one image.
        """
        found = [self._look_up(image, self._rule) for image in truth.images]
        if self._rule is MatchRule.file_name and not any(found):
            found = [self._alike(_plain(image.file_name)) for image in truth.images]
            if any(found):
                self.notes.append(
                    f"The folders in {uri} are not those of the run; images are matched by the last part of the name."
                )
        places: dict[str, int] = {}
        lost = []
        for place, (image, uris) in enumerate(zip(truth.images, found, strict=True)):
            if len(uris) > 1:
                raise InputError(
                    f"{image.file_name} of the annotations fits several uris of the run: {', '.join(uris[:2])}."
                )
            if not uris:
                lost.append(image)
                continue
            other = truth.images[places.setdefault(uris[0], place)]
            if other is not image:
                raise InputError(
                    f"{uri} has {uris[0]} twice: as image {other.image_id} ({other.file_name}) and as image "
                    f"{image.image_id} ({image.file_name}); merge the two, or remove one."
                )
        hint = self._hint(lost)
        if not places:
            raise InputError(self._nothing(truth, uri, run, hint))
        if hint:
            self.notes.append(hint)
        return Matches(
            {self._images[found_uri].image_id: place for found_uri, place in places.items()},
            tuple(image.file_name for image in lost),
        )

    def refuse_other_sizes(self, truth: CocoAnnotations, places: Mapping[int, int], uri: str) -> None:
        """Compare the sizes of annotated images and images of the run.

        Raises:
            InputError: sizes differ; the message names both.
        """
        sizes = {image.image_id: image.size for image in self._images.values()}
        others = []
        for number, place in places.items():
            image, size = truth.images[place], sizes[number]
            if size is not None and size != (image.height, image.width):
                others.append(
                    f"{image.file_name} has {image.width} x {image.height} pixels there and {size[1]} x {size[0]} in "
                    "the run"
                )
        if others:
            raise InputError(
                f"{uri} is of images of another size: {others[0]} ({count_of(len(others), 'such image')} of "
                f"{len(places)}). Masks and boxes cannot be compared; annotate the images as the run read them "
                "(upright, rotated by EXIF), or run over the annotated images."
            )

    def _nothing(self, truth: CocoAnnotations, uri: str, run: str, hint: str) -> str:
        if not self.count:
            return (
                f"Run {run} has no row of an image yet, so there is nothing to score; `htc status` says how far it is."
            )
        return (
            f"None of the images in {uri} is in run {run}: it names {count_of(len(truth.images), 'image')}, such as "
            f"{truth.images[0].file_name}; the run has {count_of(self.count, 'image')}, such as {self._example}. "
            + (hint or "No rule of --match (name, stem, id) finds one; is it the truth of other images?")
        )

    def _hint(self, lost: Sequence[ImageAnnotations]) -> str:
        """Return which other rule would find images that this one does not, as a sentence; "" if none would."""
        counts = {
            rule: sum(len(self._look_up(image, rule)) == 1 for image in lost)
            for rule in MatchRule
            if rule is not self._rule
        }
        best = max(counts, key=lambda rule: counts[rule])
        if not counts[best]:
            return ""
        what = {
            MatchRule.file_name: "by name",
            MatchRule.stem: "without the ending of the name",
            MatchRule.id: "by the id",
        }
        return (
            f"Of {count_of(len(lost), 'annotated image')} without a row, {counts[best]:,} "
            f"{'is' if counts[best] == 1 else 'are'} found {what[best]}: --match {best.value}."
        )

    def _look_up(self, image: ImageAnnotations, rule: MatchRule) -> list[str]:
        if rule is MatchRule.file_name:
            return self._find(_plain(image.file_name))
        if rule is MatchRule.stem:
            return self._of_stem(_stem(_plain(image.file_name)))
        return self._of_id(image.image_id)

    def _find(self, name: str) -> list[str]:
        """Return the images whose uri is, or after a slash ends with, a file name."""
        paths = self._by_name.get(_last(name), {})
        return list(dict.fromkeys(uri for path, uri in paths.items() if path == name or path.endswith("/" + name)))

    def _alike(self, name: str) -> list[str]:
        return list(dict.fromkeys(self._by_name.get(_last(name), {}).values()))

    def _of_stem(self, stem: str) -> list[str]:
        return list(dict.fromkeys(self._by_stem.get(stem, {}).values()))

    def _of_id(self, number: ImageId) -> list[str]:
        return list(dict.fromkeys(self._by_id.get(_id_of(number), {}).values()))


def names_in(document: Any) -> frozenset[str]:
    """Return what a document's images may be called in the run: names without folder and ending, and ids."""
    images = document.get("images") if isinstance(document, Mapping) else None
    found: set[str] = set()
    for image in images if isinstance(images, list) else ():
        if isinstance(image, Mapping):
            texts = [image[key] for key in ("file_name", "coco_url", "id") if isinstance(image.get(key), str)]
            # An id may be a name with an ending.
            found.update(_stem(_plain(text)) for text in texts)
            found.add(_id_of(image.get("id")))
    return frozenset(found)


def _paths(uri: str) -> set[str]:
    """Return the paths that may end with a file name: that of a tar's member, and a web address also unquoted."""
    path = uri.removeprefix("tar://").rpartition("::")[0] if uri.startswith("tar://") else uri
    paths = {path.lstrip("/")}
    if scheme_of(path) in WEB_SCHEMES:
        paths.add(unquote(path))
    return paths


def _plain(name: str) -> str:
    """Return a file name with Unix slashes, and none at the beginning."""
    plain = name.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain.lstrip("/")


def _last(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _stem(path: str) -> str:
    last = _last(path)
    return (last.rpartition(".")[0] or last).casefold()


def _id_of(number: Any) -> str:
    return _id_key(str(int(number)) if isinstance(number, float) and number.is_integer() else str(number))


def _id_key(text: str) -> str:
    """Return an id's text; of a number without the zeros before it."""
    text = text.strip().casefold()
    return (text.lstrip("0") or "0") if text.isdecimal() else text
