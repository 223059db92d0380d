"""The drawings are what infra/site/drawings.py draws, name code that exists, and can be read without being seen."""

import importlib.util
import re
from importlib import import_module
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.paths import ROOT


def load_drawings() -> ModuleType:
    path = ROOT / "infra" / "site" / "drawings.py"
    spec = importlib.util.spec_from_file_location("drawings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRAWINGS = load_drawings()
ALL = [(draw(), code) for draw, code in DRAWINGS.DRAWINGS.items()]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("drawing", "code"), ALL, ids=lambda each: getattr(each, "name", ""))
def test_the_file_is_what_the_script_draws(drawing: Any, code: tuple[str, ...]) -> None:
    assert (ROOT / "docs" / "drawings" / f"{drawing.name}.svg").read_text() == drawing.svg()


@pytest.mark.parametrize(("drawing", "code"), ALL, ids=lambda each: getattr(each, "name", ""))
def test_the_code_it_names_exists(drawing: Any, code: tuple[str, ...]) -> None:
    for place in code:
        module, _, name = place.partition(":")
        assert not name or hasattr(import_module(module), name), place
    # And what is drawn in the letters of code is among it, or is a switch, a method, a path or a preset.
    known = {place.partition(":")[2] for place in code} | OTHERS
    drawn = re.findall(r'class="c"[^>]*>([^<]*)<', drawing.svg())
    words = {word for line in drawn for word in re.findall(r"[A-Za-z_][\w.]*", line.replace("&lt;run&gt;", ""))}
    assert words - known - SHOWN == set()


# Names that belong to one of the classes drawn; the next test finds them.
OTHERS = {"fuse", "embed", "detect_masks", "conv_res", "interleaved", "mask_info_flow", "semantic"}
OTHERS |= {"cascade_mask_rcnn_r50_fpn"}
OTHERS |= {f"{head}.{number}" for head in ("bbox_head", "mask_head") for number in range(3)}
# Of addresses.
SHOWN = {"s3", "bucket", "images", "instances", "runs", "run", "manifest"}


def test_the_names_of_members_exist() -> None:
    from htc_model import build_model, load_preset

    config = load_preset("htc_r50_fpn")
    assert config.interleaved and config.mask_info_flow and config.semantic  # noqa: PT018
    assert load_preset("cascade_mask_rcnn_r50_fpn").num_stages == 3
    head = build_model("htc_lite0_fpn").roi_head
    names = {name for name, _ in head.named_modules()}
    assert {"bbox_head.0", "bbox_head.2", "mask_head.0", "mask_head.2", "mask_head.1.conv_res"} <= names
    assert all(hasattr(head.semantic_head, name) for name in ("fuse", "embed"))
    assert hasattr(head, "detect_masks")


@pytest.mark.parametrize(("drawing", "code"), ALL, ids=lambda each: getattr(each, "name", ""))
def test_it_has_a_text_alternative_and_stays_in_its_frame(drawing: Any, code: tuple[str, ...]) -> None:
    root = ElementTree.fromstring(drawing.svg())
    assert root.get("role") == "img"
    labels = str(root.get("aria-labelledby")).split()
    assert [root.find(f".//*[@id='{label}']") is not None for label in labels] == [True, True]
    assert len(str(root.findtext(f"{SVG}desc"))) > 100
    for box in root.iter(f"{SVG}rect"):
        assert float(box.get("x", 0)) + float(box.get("width", 0)) <= drawing.width
        assert float(box.get("y", 0)) + float(box.get("height", 0)) <= drawing.height


def test_light_and_dark_have_contrast() -> None:
    """Text reaches 4.5 to 1 and lines 3 to 1 on paper and boxes (WCAG 2.2, 1.4.3 and 1.4.11)."""
    for colours in (DRAWINGS.LIGHT, DRAWINGS.DARK):
        for below in ("paper", "box"):
            assert contrast(colours["line"], colours[below]) > 3
            for name in ("ink", "quiet", "one", "two", "three"):
                assert contrast(colours[name], colours[below]) > 4.5, name


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_site_has_the_drawings_colours() -> None:
    css = (ROOT / "docs" / "assets" / "site.css").read_text()
    for scheme, colours in (("default", DRAWINGS.LIGHT), ("slate", DRAWINGS.DARK)):
        values = " ".join(f"--hd-{key}: {value};" for key, value in colours.items())
        assert f'[data-md-color-scheme="{scheme}"] svg.hd {{ {values} }}' in css
