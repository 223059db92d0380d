"""The colours of instances: constant by category, distinct by instance, and distinct to colour-blind people too.

The first seven colours are those of Okabe and Ito (Color Universal Design, 2008, jfly.uni-koeln.de/color) without
black. The others were found by the method of Glasbey et al. ("Colour displays for categorical images", 2007): each is
the one farthest from all before, where the distance is the least of CIE 1976 Delta E under simulated protanopia and
deuteranopia (Machado, Oliveira and Fernandes, 2009, severity 1.0) and of half the Delta E of normal vision. Any two of
the twenty are at least 14 apart for each of these viewers.
"""

from functools import lru_cache
from hashlib import blake2b
from typing import TypeAlias

from htc_model.coco_classes import COCO_CLASSES
from htc_model.coco_stuff_classes import COCO_STUFF_CLASSES, FIRST_STUFF_ID
from htc_model.semantic_classes import OTHER, UNLABELED

Colour: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

PALETTE: tuple[Colour, ...] = (
    (0xE6, 0x9F, 0x00),  # orange
    (0x56, 0xB4, 0xE9),  # sky blue
    (0x00, 0x9E, 0x73),  # bluish green
    (0xF0, 0xE4, 0x42),  # yellow
    (0x00, 0x72, 0xB2),  # blue
    (0xD5, 0x5E, 0x00),  # vermilion
    (0xCC, 0x79, 0xA7),  # reddish purple
    (0x54, 0x00, 0xFC),
    (0x60, 0x6C, 0xFC),
    (0x00, 0xFC, 0x84),
    (0xF0, 0x0C, 0x54),
    (0x60, 0x54, 0x18),
    (0x9C, 0x00, 0x84),
    (0x60, 0xF0, 0xF0),
    (0x84, 0x0C, 0xC0),
    (0xB4, 0xF0, 0xB4),
    (0xA8, 0xA8, 0x48),
    (0xA8, 0x00, 0x54),
    (0x84, 0x9C, 0xFC),
    (0xF0, 0x00, 0xC0),
)
# Of stuff: muted, so that things stand out from them. Found by the same method among colours of a chroma from 4 to 26
# and a lightness from 32 to 84; any two are at least 10 apart for each of these viewers.
STUFF_PALETTE: tuple[Colour, ...] = (
    (0x84, 0x9C, 0xB4),
    (0x60, 0x48, 0x24),
    (0xD8, 0xCC, 0x9C),
    (0x18, 0x60, 0x54),
    (0xFC, 0xC0, 0xD8),
    (0x54, 0x48, 0x6C),
    (0x78, 0xB4, 0x9C),
    (0xB4, 0x84, 0x6C),
    (0xCC, 0xCC, 0xFC),
    (0x9C, 0x6C, 0x84),
    (0x3C, 0x6C, 0x90),
    (0x60, 0x6C, 0x48),
)
# COCO's 80 classes go through the palette four times. Neighbours in its list, which are found together (vehicles,
# animals, dishes), differ; the places are moved in each round so that a person shares the colour with bear, broccoli
# and hair drier, and not with kite and dining table.
_ROUND_OFFSETS = (0, 19, 10, 2)
_COCO_INDEX = {name: index for index, name in enumerate(COCO_CLASSES)}
_STUFF_INDEX = {name: index for index, name in enumerate(COCO_STUFF_CLASSES[FIRST_STUFF_ID - 1 :])}
# COCO-Stuff's 91 classes of stuff go through theirs eight times; moved so that the twelve that are found together most
# often outdoors (sky, tree, grass, buildings, road, pavement, clouds, sea, walls, dirt, mountain, fence) all differ.
_STUFF_OFFSETS = (0, 4, 1, 8, 10, 9, 0, 11)
# How far further rounds of instance colours are mixed with white and black, in turns.
_MIXES = (0.35, 0.35, 0.6, 0.55)
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (128, 128, 128)


@lru_cache(4096)
def colour_of(category: str) -> Colour:
    """Return a category's colour: the same in every picture, run and output, whichever categories occur.

    Categories of the 80 of COCO have fixed places in the palette; those of other data sets a place by a hash of the
    name. Of more than twenty categories some share a colour, and differ by their labels. Case and spaces around
    the name make no difference.
    """
    name = category.strip().casefold()
    index = _COCO_INDEX.get(name)
    if index is None:
        return PALETTE[_hash_of(name) % len(PALETTE)]
    return PALETTE[(index + _ROUND_OFFSETS[index // len(PALETTE)]) % len(PALETTE)]


@lru_cache(4096)
def stuff_colour(name: str) -> Colour:
    """Return the muted colour of a class of stuff, constant as `colour_of` is.

    Neighbours in COCO-Stuff's list of classes, such as kinds of floors and walls, differ; other names have a place by a
    hash. Classes that share a colour differ by their labels. What belongs to no class is grey.
    """
    key = name.strip().casefold()
    if key in {OTHER, UNLABELED}:
        return _GREY
    index = _STUFF_INDEX.get(key)
    if index is None:
        return STUFF_PALETTE[_hash_of(key) % len(STUFF_PALETTE)]
    return STUFF_PALETTE[(index + _STUFF_OFFSETS[index // len(STUFF_PALETTE)]) % len(STUFF_PALETTE)]


def _hash_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def instance_colour(number: int) -> Colour:
    """Return the colour of an image's instance of this number (from 0); the first hundred all differ."""
    colour = PALETTE[number % len(PALETTE)]
    round_number = number // len(PALETTE) % (len(_MIXES) + 1)
    if round_number == 0:
        return colour
    share = _MIXES[round_number - 1]
    return mixed(colour, _WHITE if round_number % 2 else _BLACK, share)


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """Return a colour between two; `share` of the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def text_colour(background: Colour) -> Colour:
    """Return black or white, the one with more contrast to the background (WCAG 2.1, "contrast ratio")."""
    return _BLACK if (luminance(background) + 0.05) ** 2 > 1.05 * 0.05 else _WHITE


def luminance(colour: Colour) -> float:
    """Return the relative luminance in [0, 1] (WCAG 2.1)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
