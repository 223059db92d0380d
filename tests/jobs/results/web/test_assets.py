"""What pages are made of: scripts joined into one, JSON in a script element, and masks decoded in the browser."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jobs.results.web import content_policy, joined_scripts, read_asset, script_json
from tests.support.browser import BrowserPages, grave_faults
from tests.support.paths import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "jobs" / "results" / "web").glob("*.js"))
HOSTILE = ["</script><script>alert(1)</script>", "<!--", "a & b", "line\u2028and\u2029paragraph", "\"'`${x}"]


@pytest.mark.parametrize("name", ["../web/viewer.js", "..", ".hidden", "a\\b", "/etc/passwd", "absent.js"])
def test_only_files_of_the_folder_are_read(name: str) -> None:
    with pytest.raises(FileNotFoundError):
        read_asset(name)


@pytest.mark.parametrize("entry", SCRIPTS)
def test_joined_scripts_have_each_module_once_and_no_module_statements(entry: str) -> None:
    joined = joined_scripts(entry)
    assert re.findall(r"^(?:import|export)\b", joined, re.MULTILINE) == []
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", joined, re.MULTILINE)
    assert sorted(names) == sorted(set(names))
    assert "</script" not in joined


def test_json_cannot_end_its_script_element() -> None:
    text = script_json(HOSTILE)
    assert json.loads(text) == HOSTILE
    assert not re.search("[<>&\u2028\u2029]", text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json([float("nan")])


def test_the_policy_lets_only_the_pages_own_code_run() -> None:
    policy = content_policy(scripts=["let a = 1;"], styles=["p {}"])
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2


@pytest.fixture
def page_with(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a page with a module and what it imports."""

    def write(entry: str, body: str = "") -> Path:
        page = tmp_path / "page.html"
        style = read_asset("style.css").decode()
        page.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>page</title><style>{style}</style>'
            f"<body><main><h1>A page</h1>{body}</main><script>{joined_scripts(entry)}</script>",
            encoding="utf-8",
        )
        return page

    return write


def masks() -> list[np.ndarray]:
    random = np.random.default_rng(14)
    made = [
        random.random(size) < share for size in [(1, 1), (1, 9), (9, 1), (31, 17), (64, 80)] for share in (0, 0.4, 1)
    ]
    ring = np.zeros((60, 70), bool)
    ring[10:50, 5:66] = True
    ring[20:40, 20:50] = False
    return [*made, ring, np.eye(40, dtype=bool)]


def encode(mask: np.ndarray) -> dict[str, object]:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def test_masks_are_decoded_as_pycocotools_does(pages: BrowserPages, page_with: Callable[..., Path]) -> None:
    page = pages.open(page_with("masks.js"))
    expected = masks()
    found = page.evaluate(
        "masks => masks.map(mask => { const one = decodeMask(mask); return {...one, pixels: [...one.pixels]}; })",
        [encode(mask) for mask in expected],
    )
    for mask, one in zip(expected, found, strict=True):
        drawn = np.zeros_like(mask)
        part = np.array(one["pixels"], bool).reshape(one["height"], one["width"])
        drawn[one["y"] : one["y"] + one["height"], one["x"] : one["x"] + one["width"]] = part
        assert one["area"] == mask.sum()
        np.testing.assert_array_equal(drawn, mask)


def test_outlines_fill_to_the_mask(pages: BrowserPages, page_with: Callable[..., Path]) -> None:
    page = pages.open(page_with("masks.js"))
    # Every pixel's centre is inside the path exactly where the mask is; twice the size too.
    fill = """masks => masks.map(mask => [1, 2].map(factor => {
        const [height, width] = mask.size.map(side => side * factor);
        const path = pathOf(mask, width, height);
        const context = document.createElement("canvas").getContext("2d");
        const inside = [];
        for (let y = 0; y < height; y += factor) for (let x = 0; x < width; x += factor)
            inside.push(context.isPointInPath(path, x + factor / 2, y + factor / 2, "evenodd"));
        return inside;
    }))"""
    expected = masks()
    for mask, both in zip(expected, page.evaluate(fill, [encode(mask) for mask in expected]), strict=True):
        for inside in both:
            np.testing.assert_array_equal(np.array(inside).reshape(mask.shape), mask)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ("", "add up"),
        ("5", "add up"),
        ("o", "breaks off"),
        (" 1", "another kind"),
        ("0ü", "another kind"),
        ("N2", "neg"),
    ],
)
def test_a_damaged_mask_is_said_to_be_damaged(
    pages: BrowserPages, page_with: Callable[..., Path], counts: str, reason: str
) -> None:
    page = pages.open(page_with("masks.js"))
    said = page.evaluate(
        "counts => { try { decodeMask({size: [4, 5], counts}); return ''; } catch (error) { return error.message; } }",
        counts,
    )
    assert reason in said


ITEM = {
    "name": "a <b>photo</b>",
    "uri": "s3://bucket/a <b>photo</b>",
    "width": 40,
    "height": 40,
    "note": "",
    "image": "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='40' height='40'/%3E",
    "instances": [
        {"category": "ring", "score": 0.9, "box": [5, 5, 30, 30], "mask": None, "colour": "#d55e00"},
        {"category": "<i>dog", "score": 0.4, "box": [0, 0, 9, 9], "mask": {"size": [40, 40], "counts": "0"},
         "colour": "#0072b2"},
    ],
}  # fmt: skip


def test_the_viewer_switches_masks_and_names_the_damaged_one(
    pages: BrowserPages, page_with: Callable[..., Path]
) -> None:
    page = pages.open(page_with("viewer.js", '<dialog class="viewer"></dialog>'))
    square = np.zeros((40, 40), bool)
    square[5:35, 5:35] = True
    item = json.loads(json.dumps(ITEM))
    item["instances"][0]["mask"] = encode(square)
    page.evaluate(
        """item => {
            window.steps = [];
            window.viewer = new Viewer(document.querySelector("dialog"), {onStep: (step) => window.steps.push(step)});
            window.viewer.show(item, {position: "1 of 1"});
        }""",
        item,
    )
    assert page.locator(".viewer-title").inner_text() == "a <b>photo</b>"
    assert page.locator(".viewer-problem").all_inner_texts() == ["the mask's runs do not add up to its size"]
    page.locator(".viewer-canvas[data-loaded]").wait_for()
    middle = """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const {canvas} = window.viewer.view;
        const one = new OffscreenCanvas(1, 1).getContext("2d");
        one.drawImage(canvas, -canvas.width / 2, -canvas.height / 2);
        done([...one.getImageData(0, 0, 1, 1).data]);
    })))"""
    assert page.evaluate(middle)[3] > 0
    page.get_by_role("checkbox", name="ring").uncheck()
    assert page.evaluate(middle)[3] == 0
    page.get_by_role("button", name="All masks").click()
    assert page.evaluate(middle)[3] > 0
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("window.steps") == [1]
    assert grave_faults(page) == []
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
