"""The tables of table1_small as Markdown: each system's AP, and its gain over Cascade Mask R-CNN with intervals.

AP is in points: the mean over the classes, and that of persons alone, of whom there are most photos.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from table1_data import CLASSES, COMPLETE_FOLDER, PERSON
from table1_scores import read_matches, resample_images, resampled_scores

BASELINE = "Cascade Mask R-CNN"
MAIN_SYSTEMS = (BASELINE, "HTC", "HTC without semantic", "PANet", "Mask R-CNN")
SWITCHES_ALONE = ("Cascade + interleaved", "Cascade + mask information flow", "Cascade + semantic")
# Mask AP over Cascade Mask R-CNN, in points: HTC, table 1 of arXiv:1901.07518; Mask R-CNN, its section 1.
PAPER_GAINS = {"HTC": "+1.5 (ResNet-50), +1.3 (ResNet-101), +1.1 (ResNeXt-101)", "Mask R-CNN": "-1.2 (ResNet-50)"}
# What is scored, and how the tables call it.
PARTS = {"mean": "all classes", PERSON: "persons"}
_COLUMNS = {
    "mask_ap": "mask AP", "mask_ap50": "AP50", "mask_ap75": "AP75", "mask_ap_small": "S", "mask_ap_medium": "M",
    "mask_ap_large": "L", "box_ap": "box AP",
}  # fmt: skip
_INTERVAL = 0.95
_DRAW_SEED = 1901
_MARKS = "<!-- table: begin -->", "<!-- table: end -->"

Results = Sequence[Mapping[str, Any]]
# By system and seed: [draws].
Drawn = Mapping[tuple[str, int], NDArray[np.float64]]


def describe_cells(results: Results, heldout: Path, *, draws: int = 0) -> str:
    """Format the report of the finished cells, of which there may be none.

    Args:
        heldout: the COCO document of the held-out photos.
        draws: of photos with replacement, for the intervals; 0 leaves them out.
    """
    if not results:
        return "No cell is finished yet.\n"
    parts = [_describe_settings(results)]
    for part, name in PARTS.items():
        parts += [f"Mask AP, {name}:", _score_table(results, part)]
    for part, name in PARTS.items():
        weights = resample_images(_groups(heldout), draws, seed=_DRAW_SEED) if draws else None
        drawn = None if weights is None else draw_scores(results, part, weights)
        parts += [f"Gain over {BASELINE} in mask AP, {name}:", _gain_table(results, part, drawn)]
    return "\n\n".join(parts) + "\n"


def paired_gains(results: Results, system: str, part: str, score: str = "mask_ap") -> dict[int, float]:
    """Subtract the baseline's score of the same seed: points of AP by seed, for the seeds that both systems have."""
    ours, baseline = _by_seed(results, system, part, score), _by_seed(results, BASELINE, part, score)
    return {seed: ours[seed] - baseline[seed] for seed in sorted(ours) if seed in baseline}


def seed_interval(gains: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean gain over seeds; None for fewer than two."""
    if len(gains) < 2:
        return None
    half = float(student.ppf((1 + _INTERVAL) / 2, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
    return mean(gains) - half, mean(gains) + half


def draw_scores(results: Results, part: str, weights: NDArray[np.float64]) -> Drawn:
    """Compute each cell's mask AP of every draw of held-out photos, in points, by system and seed."""
    classes = CLASSES if part == "mean" else (part,)
    return {
        (cell["system"], cell["seed"]): 100 * resampled_scores(read_matches(cell["matches"]), weights, "mask", classes)
        for cell in results
    }


def photo_interval(drawn: Drawn, system: str, seeds: Sequence[int]) -> tuple[float, float]:
    """Return the 95 % interval of the mean gain over resampled photos, the same ones for both systems and all seeds."""
    gains = np.mean([drawn[system, seed] - drawn[BASELINE, seed] for seed in seeds], axis=0)
    # A draw of few photos may have no object.
    low, high = np.nanquantile(gains, [(1 - _INTERVAL) / 2, (1 + _INTERVAL) / 2])
    return float(low), float(high)


def _groups(heldout: Path) -> list[list[int]]:
    """Divide the held-out photos as the data sets do, so that each draw has as many of each."""
    images = json.loads(heldout.read_text(encoding="utf-8"))["images"]
    is_complete = [f"/{COMPLETE_FOLDER}/" in f"/{image['file_name']}" for image in images]
    return [[number for number, each in enumerate(is_complete) if each == wanted] for wanted in (True, False)]


def _by_seed(results: Results, system: str, part: str, score: str) -> dict[int, float]:
    return {cell["seed"]: 100 * cell["scores"][part][score] for cell in results if cell["system"] == system}


def _score_table(results: Results, part: str) -> str:
    """Format the mean over seeds, AP with the lowest and the highest."""
    lines = [f"| system | seeds | {' | '.join(_COLUMNS.values())} |", "|---|---|" + "---|" * len(_COLUMNS)]
    for system in (*MAIN_SYSTEMS, *SWITCHES_ALONE):
        scores = {score: list(_by_seed(results, system, part, score).values()) for score in _COLUMNS}
        if scores["mask_ap"]:
            cells = [_spread(values) if score.endswith("_ap") else _mean(values) for score, values in scores.items()]
            lines.append(f"| {system} | {len(scores['mask_ap'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gain_table(results: Results, part: str, drawn: Drawn | None) -> str:
    """Format the gains over the baseline, paired by seed and by photo, beside the paper's."""
    lines = [
        "| system | mean | by seed | 95 % over seeds | 95 % over photos | AP75 | box AP | the paper |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system in (*MAIN_SYSTEMS, *SWITCHES_ALONE):
        by_seed = paired_gains(results, system, part)
        gains = list(by_seed.values())
        if system == BASELINE or not gains:
            continue
        others = [mean(paired_gains(results, system, part, score).values()) for score in ("mask_ap75", "box_ap")]
        over_photos = None if drawn is None else photo_interval(drawn, system, list(by_seed))
        cells = [
            f"{mean(gains):+.1f}",
            " ".join(f"{gain:+.1f}" for gain in gains),
            _interval(seed_interval(gains)),
            _interval(over_photos),
            *(f"{value:+.1f}" for value in others),
            PAPER_GAINS.get(system, ""),
        ]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.1f} to {ends[1]:+.1f}"


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" if min(values) >= 0 else "-"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else f"{values[0]:.1f}"


def _describe_settings(results: Results) -> str:
    """Describe data, settings and duration, which all cells of a table share; only system and seed differ."""
    first = results[0]
    settings = first["settings"]
    model, optimiser, sampling = settings["model"], settings["optimiser"], settings["sampling"]
    initial = "ImageNet's" if model["initial"] == "imagenet" else "those of the start"
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in results})))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sentences = (
        f"{model['preset']}'s backbone; initial weights: {initial}; frozen_stages {model['frozen_stages']}.",
        f"Classes {', '.join(model['classes'])}; {first['pictures']} training images, {settings['epochs']} epochs, "
        f"{first['steps']} steps of {settings['batch_size']}, short side {model['short_side']} pixels, "
        f"{sampling['rois']} RoIs and {sampling['proposals']} proposals per image.",
        f"{optimiser['kind']}, learning rate {optimiser['learning_rate']:g}, {optimiser['schedule']}; seeds {seeds}.",
        f"Evaluated on {first['heldout']} held-out images; AP in points, mean (lowest to highest) over seeds.",
        f"Machine: {first['machine']}; {versions}; {mean(cell['cpu_s'] for cell in results):.0f} CPU s per cell.",
    )
    return "\n".join(sentences)


def check_page(page: Path) -> str:
    """Read a page that has a place for the table.

    Raises:
        OSError: there is none. ValueError: the page lacks the two marks.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = _MARKS
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{page} has no place for the table: put the lines {begin} and {end} into it, once each")
    return text


def put_into_page(text: str, page: Path) -> None:
    """Replace what stands between a page's two marks; raises as `check_page`."""
    begin, end = _MARKS
    head, _, rest = check_page(page).partition(begin)
    tail = rest.partition(end)[2]
    page.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{tail}", encoding="utf-8")
