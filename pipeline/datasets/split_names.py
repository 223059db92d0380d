"""Names of splits, as data sets write them."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "heldout": "val",
    "dev": "val",
    "test": "test",
}
"""Train, val or test by the names that they have in data sets."""


def known_split(name: str) -> str | None:
    """Return "train", "val" or "test" for names such as `instances_val2017`; None for others."""
    word = name.lower().removeprefix("instances_").removeprefix("instances-").rstrip("0123456789_-")
    return SPLIT_NAMES.get(word)
