"""Names of classes that look like one class written in two ways."""

from collections import defaultdict
from collections.abc import Iterable


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only in case or in spaces."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["".join(name.split()).casefold()].append(name)
    return [group for group in groups.values() if len(group) > 1]
