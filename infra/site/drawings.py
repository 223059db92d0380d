"""The drawings of the documentation, docs/drawings/*.svg: `python infra/site/drawings.py` writes them again.

Every drawing has a title and a description for screen readers, and colours for light and dark. `CODE` of each is what
it names in the code, "module:name"; tests/documents/test_drawings.py looks whether those are there.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "drawings"
# Paper, ink and lines; then one colour for each of HTC's ideas, distinct also for colour-blind readers (Okabe and Ito's
# vermilion, blue and bluish green, darker or lighter for contrast).
LIGHT = {"paper": "#ffffff", "ink": "#1c2733", "quiet": "#51606e", "box": "#eef2f5", "line": "#51606e"}
LIGHT |= {"one": "#b34700", "two": "#0062a3", "three": "#00704f"}
DARK = {"paper": "#1b2028", "ink": "#e6ebf0", "quiet": "#a9b5c1", "box": "#2a323d", "line": "#a9b5c1"}
DARK |= {"one": "#ff9b57", "two": "#6cb8f5", "three": "#4fd0a4"}
Point = tuple[float, float]


class Drawing:
    """An SVG of boxes, arrows and words.

    Args:
        name: its file, without the suffix.
        width, height: in the drawing's units, about a pixel.
        title: what it is; the description says what it shows, for those who do not see it.
    """

    def __init__(self, name: str, width: int, height: int, title: str, description: str) -> None:
        self.name, self.width, self.height = name, width, height
        self.title, self.description = title, description
        self._parts: list[str] = []

    def box(self, place: tuple[float, float, float, float], words: str, code: str = "", colour: str = "line") -> None:
        """A box with words and, below them, names of the code; lines are separated by line breaks.

        Args:
            place: x, y, width, height.
        """
        x, y, width, height = place
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="b" stroke="var(--hd-{colour})"/>'
        )
        lines = [(line, "w") for line in words.split("\n")] + [(line, "c") for line in code.split("\n") if line]
        top = y + height / 2 - (len(lines) - 1) * 8.5 + 4.5
        for number, (line, kind) in enumerate(lines):
            self.text(x + width / 2, top + number * 17, line, kind=kind, anchor="middle")

    def text(self, x: float, y: float, words: str, *, kind: str = "w", anchor: str = "start", colour: str = "") -> None:
        """A line of text; kind w: words, c: code, q: quiet, h: heading."""
        style = f' style="fill:var(--hd-{colour})"' if colour else ""
        self._parts.append(f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}"{style}>{escape(words)}</text>')

    def arrow(self, *points: Point, colour: str = "line", dashed: bool = False, head: bool = True) -> None:
        """A line through the points with a head at its end."""
        (x1, y1), (x2, y2) = points[-2], points[-1]
        length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-6)
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        stop = (x2 - 7 * dx, y2 - 7 * dy) if head else (x2, y2)
        path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], stop])
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(f'<polyline points="{path}" class="l" stroke="var(--hd-{colour})"{dash}/>')
        if head:
            wings = [(x2 - 9 * dx + 4.5 * dy, y2 - 9 * dy - 4.5 * dx), (x2 - 9 * dx - 4.5 * dy, y2 - 9 * dy + 4.5 * dx)]
            corners = " ".join(f"{x:g},{y:g}" for x, y in [(x2, y2), *wings])
            self._parts.append(f'<polygon points="{corners}" fill="var(--hd-{colour})"/>')

    def band(self, x: float, y: float, width: float, height: float) -> None:
        """A tinted area behind what belongs together."""
        self._parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="a"/>')

    def svg(self) -> str:
        """Return the file's text."""
        light = "".join(f"--hd-{key}:{value};" for key, value in LIGHT.items())
        dark = "".join(f"--hd-{key}:{value};" for key, value in DARK.items())
        sans = "system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif"
        mono = "ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',monospace"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="hd" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" '
                f'aria-labelledby="{self.name}-title {self.name}-description">',
                f'<title id="{self.name}-title">{escape(self.title)}</title>',
                f'<desc id="{self.name}-description">{escape(self.description)}</desc>',
                "<style>",
                f"svg.hd{{{light}}}",
                f"@media (prefers-color-scheme:dark){{svg.hd{{{dark}}}}}",
                ".hd .p{fill:var(--hd-paper)}.hd .b{fill:var(--hd-box);stroke-width:1.6}",
                ".hd .a{fill:var(--hd-box);opacity:.55}.hd .l{fill:none;stroke-width:1.8;stroke-linejoin:round}",
                f".hd text{{fill:var(--hd-ink);font:14px {sans}}}",
                f".hd .c{{font:12px {mono};fill:var(--hd-quiet)}}.hd .q{{font-size:12px;fill:var(--hd-quiet)}}",
                ".hd .h{font-size:15px;font-weight:600}",
                "</style>",
                f'<rect class="p" width="{self.width}" height="{self.height}" rx="8"/>',
                *self._parts,
                "</svg>\n",
            ]
        )


NETWORK_CODE = (
    "htc_model.structures:ImageBatch",
    "htc_model.network.resnet:ResNet",
    "htc_model.network.fpn:FPN",
    "htc_model.network.rpn:RPNHead",
    "htc_model.network.semantic_head:SemanticHead",
    "htc_model.network.cascade_roi_head:CascadeHead",
    "htc_model.network.roi_align:pool_pyramid",
    "htc_model.network.roi_align:pool_map",
    "htc_model.network.roi_heads:BoxHead",
    "htc_model.network.roi_heads:MaskHead",
    "htc_model.network.postprocess:select_detections",
    "htc_model.masks.encode:encode_detections",
)


def network() -> Drawing:
    """The whole network, with the modules that compute each part."""
    drawing = Drawing(
        "network",
        1130,
        648,
        "The network, from an image batch to detections",
        "The backbone and the pyramid compute features. From them the proposal network proposes boxes, and the "
        "semantic branch computes one more feature map. Three box heads refine the boxes one after the other; three "
        "mask heads compute masks, each reading the features of the one before. All heads read features that are "
        "pooled from the pyramid, with the semantic branch's added. The scores and the masks are means over the three "
        "stages.",
    )
    columns = (230, 470, 710)
    drawing.box((20, 30, 150, 64), "image batch", "ImageBatch")
    drawing.box((230, 30, 185, 64), "backbone: C2 to C5", "ResNet")
    drawing.box((470, 30, 185, 64), "pyramid: P2 to P6", "FPN")
    drawing.arrow((170, 62), (230, 62))
    drawing.arrow((415, 62), (470, 62))
    # To proposals, and to what RoI features are pooled from.
    drawing.arrow((520, 94), (520, 122), (95, 122), (95, 306))
    drawing.arrow((186, 122), (186, 249), (230, 249))
    drawing.arrow((186, 249), (186, 557), (230, 557))
    drawing.box((230, 148, 652, 54), "semantic branch, at stride 8", "SemanticHead: fuse, embed", "three")
    drawing.arrow((600, 94), (600, 148), colour="three")
    drawing.arrow((562, 202), (562, 232), colour="three")
    drawing.arrow((230, 182), (204, 182), (204, 567), (230, 567), colour="three")
    drawing.box((230, 232, 652, 34), "RoI features 7 x 7:  pool_pyramid + pool_map", "")
    drawing.box((20, 306, 150, 64), "proposals", "RPNHead")
    for number, x in enumerate(columns):
        drawing.box((x, 306, 172, 64), f"box head {number + 1}", f"BoxHead, bbox_head.{number}")
        drawing.box((x, 450, 172, 64), f"mask head {number + 1}", f"MaskHead, mask_head.{number}")
        drawing.arrow((x + 60, 266), (x + 60, 306))
        drawing.arrow((x + 60, 540), (x + 60, 514))
        drawing.arrow((x + 135, 370), (x + 135, 450), colour="one", dashed=True)
        drawing.arrow((x + 60, 414), (x + 60, 450))
    drawing.arrow((170, 338), (230, 338))
    for x in columns[:-1]:
        drawing.arrow((x + 172, 338), (x + 240, 338))
        drawing.text(x + 205, 328, "boxes", kind="q", anchor="middle")
        drawing.arrow((x + 172, 482), (x + 240, 482), colour="two")
        drawing.text(x + 205, 472, "conv_res", kind="c", anchor="middle")
    drawing.arrow((882, 338), (940, 338))
    drawing.box((940, 296, 170, 84), "boxes of stage 3,\nmean of 3 scores", "select_detections")
    drawing.arrow((1025, 380), (1025, 414), (290, 414), head=False)
    drawing.text(915, 406, "final boxes", kind="q")
    drawing.arrow((882, 482), (940, 482))
    drawing.box((940, 440, 170, 84), "mean of 3 masks,\n28 x 28", "detect_masks")
    drawing.box((230, 540, 652, 34), "RoI features 14 x 14:  pool_pyramid + pool_map", "")
    drawing.arrow((1025, 524), (1025, 546))
    drawing.box((940, 546, 170, 50), "COCO masks", "encode_detections")
    drawing.arrow((20, 624), (56, 624), colour="one", dashed=True)
    drawing.text(64, 629, "interleaved: in training, a stage's refined boxes", colour="one")
    drawing.arrow((422, 624), (458, 624), colour="two")
    drawing.text(466, 629, "mask_info_flow: the mask features before", colour="two")
    drawing.arrow((786, 624), (822, 624), colour="three")
    drawing.text(830, 629, "semantic: that branch's features", colour="three")
    return drawing


IDEAS_CODE = (
    "htc_model.config:ModelConfig",
    "htc_model.training.cascade_losses",
)


def ideas() -> Drawing:
    """Cascade Mask R-CNN and HTC's three ideas, one after the other."""
    drawing = Drawing(
        "ideas",
        1040,
        660,
        "From Cascade Mask R-CNN to Hybrid Task Cascade, in three steps",
        "Four panels, each with three box heads and three mask heads. First, Cascade Mask R-CNN: the box head and the "
        "mask head of a stage get the same boxes. Second, interleaved: a mask head gets the boxes that the box head of "
        "its stage has refined. Third, with mask information flow: a mask head also gets the features of the mask head "
        "before. Fourth, with the semantic branch: all heads also get the semantic branch's features.",
    )
    panels = (
        ("Cascade Mask R-CNN", "cascade_mask_rcnn_r50_fpn", ""),
        ("1. Interleaved execution", "interleaved", "one"),
        ("2. Mask information flow", "mask_info_flow", "two"),
        ("3. Semantic branch", "semantic", "three"),
    )
    for number, (heading, switch, colour) in enumerate(panels):
        _panel(drawing, 15 + number % 2 * 515, 15 + number // 2 * 320, number, (heading, switch, colour))
    return drawing


_SAID = (
    "Both heads of a stage get the boxes of the stage before.",
    "A mask head gets the boxes that its stage has refined.",
    "A mask head also gets the features of the mask head before.",
    "Every head also gets the features of the semantic branch.",
)


def _panel(drawing: Drawing, x: float, y: float, ideas_in: int, words: Sequence[str]) -> None:
    heading, switch, colour = words
    drawing.band(x, y, 495, 305)
    drawing.text(x + 16, y + 28, heading, kind="h", colour=colour)
    drawing.text(x + 479, y + 28, switch, kind="c", anchor="end")
    drawing.text(x + 16, y + 50, _SAID[ideas_in], kind="q")
    has_branch = ideas_in == 3
    boxes, masks, columns = y + 136, y + 236, (x + 130, x + 250, x + 370)
    if has_branch:
        drawing.box((x + 16, y + 64, 463, 34), "semantic branch", "", "three")
    drawing.box((x + 16, boxes, 82, 44), "proposals")
    for stage, left in enumerate(columns):
        drawing.box((left, boxes, 84, 44), f"box {stage + 1}")
        drawing.box((left, masks, 84, 44), f"mask {stage + 1}")
        before = x + 98 if stage == 0 else columns[stage - 1] + 84
        drawing.arrow((before, boxes + 22), (left, boxes + 22))
        if ideas_in == 0:
            # The same boxes as the box head's.
            middle = (before + left) / 2
            drawing.arrow((middle, boxes + 22), (middle, masks + 22), (left, masks + 22))
        else:
            drawing.arrow((left + 42, boxes + 44), (left + 42, masks), colour="one")
        if ideas_in >= 2 and stage:
            drawing.arrow((before, masks + 22), (left, masks + 22), colour="two")
        if has_branch:
            drawing.arrow((left + 42, y + 98), (left + 42, boxes), colour="three")
            beside = left + 98
            drawing.arrow(
                (beside, y + 98), (beside, masks - 16), (left + 70, masks - 16), (left + 70, masks), colour="three"
            )


WALK_CODE = (
    "pipeline.inputs.listing:list_images",
    "pipeline.inputs.image_ref:ImageRef",
    "pipeline.planning.planner:Planner",
    "pipeline.planning.manifest:Manifest",
    "pipeline.driver.shard_queue:ShardQueue",
    "pipeline.messages:Assignment",
    "pipeline.worker.worker:Worker",
    "pipeline.worker.shard_pipeline:ShardPipeline",
    "pipeline.inputs.read:fetch_image",
    "pipeline.inputs.decode:decode_image",
    "pipeline.worker.model_queue:ModelQueue",
    "pipeline.worker.segmenter:Segmenter",
    "htc_model.network.detector:HTC",
    "htc_model.masks.encode:encode_detections",
    "pipeline.worker.error_boundaries:image_boundary",
    "pipeline.messages:ImageFailure",
    "pipeline.output.rows:ImageRow",
    "pipeline.output.rows:InstanceRow",
    "pipeline.worker.commit_claim:CommitClaim",
    "pipeline.output.commit:commit_shard",
    "pipeline.driver.run_totals:RunTotals",
)


def walk() -> Drawing:
    """An image's way from the bucket to its row."""
    drawing = Drawing(
        "walk",
        1130,
        600,
        "The walk of an image, from the bucket to its row",
        "Three lanes: the store, the driver, a worker. The driver lists the images of the bucket, writes them into the "
        "manifest, and gives shards of it to workers. A worker reads the image from the bucket, decodes it, runs the "
        "network on it in a batch, and encodes the masks. An exception in any of these steps becomes a row with a "
        "status and a reason. When all images of the shard are done, the worker writes the shard's instances and at "
        "last its images, which commits it. The result goes back to the driver, which counts it.",
    )
    for y, height, name in ((14, 128, "the store"), (154, 140, "the driver"), (306, 280, "a worker")):
        drawing.band(14, y, 1102, height)
        drawing.text(28, y + 24, name, kind="h")
    drawing.box((190, 44, 170, 70), "the bucket's images", "s3://bucket/images/")
    drawing.box((430, 44, 180, 70), "the manifest", "runs/<run>/manifest/")
    drawing.box((690, 44, 190, 70), "instances, written first", "instances/run=<run>/")
    drawing.box((910, 44, 190, 70), "images, written last:\nthe commit", "images/run=<run>/")
    drawing.box((190, 196, 170, 70), "1. list", "list_images\n→ ImageRef")
    drawing.box((430, 196, 180, 70), "2. plan", "Planner → Manifest")
    drawing.box((660, 196, 190, 70), "3. hand out", "ShardQueue → Assignment")
    drawing.box((905, 196, 190, 70), "9. count", "RunTotals")
    drawing.arrow((275, 114), (275, 196))
    drawing.arrow((360, 231), (430, 231))
    drawing.arrow((480, 196), (480, 114))
    drawing.arrow((560, 114), (560, 172), (735, 172), (735, 196))
    # A worker's steps.
    steps = (
        (40, "4. read", "fetch_image"),
        (230, "5. decode", "decode_image"),
        (420, "6. infer in batches", "ModelQueue, Segmenter\nHTC"),
        (640, "7. encode", "encode_detections"),
    )
    for x, words, code in steps:
        drawing.box((x, 356, 170 if x != 420 else 190, 76), words, code)
    drawing.arrow((210, 394), (230, 394))
    drawing.arrow((400, 394), (420, 394))
    drawing.arrow((610, 394), (640, 394))
    drawing.box((870, 346, 230, 96), "8. rows, and the commit", "ImageRow, InstanceRow\nCommitClaim, commit_shard")
    drawing.arrow((810, 394), (870, 394))
    drawing.arrow((755, 266), (755, 330), (112, 330), (112, 356))
    drawing.text(300, 324, "a shard, to Worker and its ShardPipeline", kind="q")
    drawing.arrow((190, 79), (150, 79), (150, 356))
    drawing.text(144, 220, "bytes", kind="q", anchor="end")
    drawing.arrow((885, 346), (885, 160), (785, 160), (785, 114))
    drawing.arrow((1060, 346), (1060, 300), (1108, 300), (1108, 174), (1005, 174), (1005, 114))
    drawing.arrow((990, 346), (990, 266))
    # What goes wrong.
    for x in (125, 315, 515, 725):
        drawing.arrow((x, 432), (x, 500), colour="one", dashed=True)
    drawing.box(
        (40, 500, 770, 60), "an exception, at the boundary of one image", "image_boundary → ImageFailure", "one"
    )
    drawing.arrow((810, 530), (985, 530), (985, 442), colour="one", dashed=True)
    drawing.text(830, 552, "a row with its status and reason", colour="one")
    return drawing


DRAWINGS = {network: NETWORK_CODE, ideas: IDEAS_CODE, walk: WALK_CODE}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in DRAWINGS:
        drawn = draw()
        (FOLDER / f"{drawn.name}.svg").write_text(drawn.svg(), encoding="utf-8")
