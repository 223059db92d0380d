"""The palette: constant by category, and distinct for colour-blind people, too."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from htc_model.coco_classes import COCO_CLASSES
from jobs.results.drawing import PALETTE, STUFF_PALETTE, colour_of, instance_colour, stuff_colour, text_colour

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009,
# severity 1.0; for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# IEC 61966-2-1 (sRGB), and CIE 1976 with its white point D65.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(colour: tuple[int, int, int]) -> np.ndarray:
    value = np.array(colour) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(colour: tuple[int, int, int], sight: str) -> np.ndarray:
    seen = np.clip(SIGHT[sight] @ linear(colour), 0, 1)
    x, y, z = (np.cbrt(v) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in TO_XYZ @ seen / WHITE)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def least_distance(colours: tuple[tuple[int, int, int], ...], sight: str) -> float:
    seen = [lab(colour, sight) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize(("sight", "least"), [("normal", 26.0), ("protanopia", 14.0), ("deuteranopia", 14.0)])
def test_any_two_colours_are_told_apart(sight: str, least: float) -> None:
    assert least_distance(PALETTE, sight) > least
    # The first seven, those of Okabe and Ito, further.
    assert least_distance(PALETTE[:7], sight) > 17


@pytest.mark.parametrize(("sight", "least"), [("normal", 21.0), ("protanopia", 10.0), ("deuteranopia", 10.0)])
def test_any_two_colours_of_stuff_are_told_apart(sight: str, least: float) -> None:
    assert least_distance(STUFF_PALETTE, sight) > least


def test_stuff_is_muted_and_things_are_not() -> None:
    chroma = [float(np.hypot(*lab(colour, "normal")[1:])) for colour in STUFF_PALETTE]
    assert max(chroma) < 27
    assert np.median([float(np.hypot(*lab(colour, "normal")[1:])) for colour in PALETTE]) > 50


def test_stuff_that_is_found_together_differs() -> None:
    names = ["sky-other", "tree", "grass", "building-other", "road", "pavement"]
    names += ["clouds", "sea", "wall-concrete", "dirt", "mountain", "fence"]
    assert len({stuff_colour(name) for name in names}) == len(names)
    assert stuff_colour(" Tree ") == stuff_colour("tree")
    assert stuff_colour("my own ground") == stuff_colour("my own ground") in STUFF_PALETTE


def test_the_simulation_finds_colours_that_are_confused() -> None:
    # Red and green of equal lightness: what the test above would refuse.
    confused = ((200, 60, 40), (110, 110, 40))
    assert least_distance(confused, "normal") > 50
    assert least_distance(confused, "deuteranopia") < 14


def test_a_category_keeps_its_colour_in_another_process_and_whatever_else_occurs() -> None:
    names = ["dog", "person", "Kätzchen", "my class 7"]
    script = f"from jobs.results.drawing import colour_of; print([colour_of(n) for n in {names[::-1]!r}])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([colour_of(name) for name in names[::-1]])
    assert colour_of(" Person") == colour_of("person")


def test_categories_that_stand_together_in_coco_differ() -> None:
    for first in range(0, 80, 20):
        assert len({colour_of(name) for name in COCO_CLASSES[first : first + 20]}) == 20
    shared = {name for name in COCO_CLASSES if colour_of(name) == colour_of("person")}
    assert shared == {"person", "bear", "broccoli", "hair drier"}


def test_instances_have_a_hundred_colours() -> None:
    assert len({instance_colour(number) for number in range(100)}) == 100
    assert instance_colour(100) == instance_colour(0)


def test_labels_are_legible_on_every_colour() -> None:
    def luminance(colour: tuple[int, int, int]) -> float:
        return float(TO_XYZ[1] @ linear(colour))

    for plate in [*map(instance_colour, range(100)), *STUFF_PALETTE]:
        bright, dark = sorted([luminance(plate), luminance(text_colour(plate))], reverse=True)
        # WCAG 2.1, success criterion 1.4.3.
        assert (bright + 0.05) / (dark + 0.05) >= 4.5
