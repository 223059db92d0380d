"""Short names of images that are shown together, no two of which are alike."""

from collections import defaultdict
from collections.abc import Sequence


def short_names(uris: Sequence[str]) -> list[str]:
    """Return the last part of each URI, with so many parts before it that it is like no other one.

    An image in a tar archive is named by its member; the archive is its last resort.
    """
    parts = [_parts(uri) for uri in uris]
    names = [each[-1] for each in parts]
    length = 1
    while True:
        alike: defaultdict[str, set[str]] = defaultdict(set)
        for name, uri in zip(names, uris, strict=True):
            alike[name].add(uri)
        places = [place for place, name in enumerate(names) if len(alike[name]) > 1]
        if not places:
            return names
        if all(length >= len(parts[place]) for place in places):
            return [uris[place] if place in set(places) else name for place, name in enumerate(names)]
        length += 1
        for place in places:
            names[place] = "/".join(parts[place][-length:])


def _parts(uri: str) -> list[str]:
    shown = uri.removeprefix("tar://").split("::")[0]
    return [part for part in shown.split("/") if part] or [uri]
