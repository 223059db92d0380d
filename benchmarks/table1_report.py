"""The table of table1_small as Markdown: each system's AP, and its gain over Cascade Mask R-CNN by seed."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

BASELINE = "Cascade Mask R-CNN"
MAIN_SYSTEMS = ("Mask R-CNN", BASELINE, "HTC without semantic", "HTC")
SWITCHES_ALONE = ("Cascade + interleaved", "Cascade + mask information flow", "Cascade + semantic")
# HTC over Cascade Mask R-CNN, mask AP in points (arXiv:1901.07518, table 1).
PAPER_GAINS = "+1.5 (ResNet-50), +1.3 (ResNet-101), +1.1 (ResNeXt-101)"
_COLUMNS = {"box_ap": "box AP", "box_ap50": "box AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}

Results = Sequence[Mapping[str, Any]]


def describe_cells(results: Results) -> str:
    """Format the report of the finished cells, of which there may be none."""
    if not results:
        return "No cell is finished yet.\n"
    parts = [_describe_settings(results), _score_table(results), _gain_table(results)]
    return "\n\n".join(parts) + "\n"


def paired_gains(results: Results, system: str, score: str) -> dict[int, float]:
    """Subtract the baseline's score of the same seed: points of AP by seed, for the seeds that both systems have."""
    ours, baseline = _by_seed(results, system, score), _by_seed(results, BASELINE, score)
    return {seed: ours[seed] - baseline[seed] for seed in sorted(ours) if seed in baseline}


def _by_seed(results: Results, system: str, score: str) -> dict[int, float]:
    return {cell["seed"]: 100 * cell["scores"][score] for cell in results if cell["system"] == system}


def _score_table(results: Results) -> str:
    """Format the mean over seeds, with the lowest and the highest; AP in points."""
    lines = [f"| system | seeds | {' | '.join(_COLUMNS.values())} |", "|---|---|" + "---|" * len(_COLUMNS)]
    for system in (*MAIN_SYSTEMS, *SWITCHES_ALONE):
        scores = [list(_by_seed(results, system, score).values()) for score in _COLUMNS]
        if scores[0]:
            lines.append(f"| {system} | {len(scores[0])} | {' | '.join(_spread(values) for values in scores)} |")
    return "\n".join(lines)


def _gain_table(results: Results) -> str:
    """Format the gains over the baseline, paired by seed, beside the paper's."""
    lines = [
        f"Gain over {BASELINE}, paired by seed, in points of AP:",
        "",
        "| system | box AP: mean | box AP: by seed | mask AP: mean | mask AP: by seed | the paper's mask AP |",
        "|---|---|---|---|---|---|",
    ]
    for system in (*MAIN_SYSTEMS, *SWITCHES_ALONE):
        gains = [list(paired_gains(results, system, score).values()) for score in ("box_ap", "mask_ap")]
        if system == BASELINE or not gains[0]:
            continue
        cells = [cell for values in gains for cell in (f"{mean(values):+.1f}", " ".join(f"{v:+.1f}" for v in values))]
        lines.append(f"| {system} | {' | '.join(cells)} | {PAPER_GAINS if system == 'HTC' else ''} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _describe_settings(results: Results) -> str:
    """Describe data, settings and duration, which all cells of a table share; only system and seed differ."""
    first = results[0]
    settings = first["settings"]
    model, optimiser, sampling = settings["model"], settings["optimiser"], settings["sampling"]
    initial = "ImageNet's" if model["initial"] == "imagenet" else "given backbone, neck and proposal network"
    seeds = ", ".join(map(str, sorted({cell["seed"] for cell in results})))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sentences = (
        f"{model['preset']}'s backbone; initial weights: {initial}; frozen_stages {model['frozen_stages']}.",
        f"Class person; {first['pictures']} training images, {settings['epochs']} epochs, {first['steps']} steps of "
        f"{settings['batch_size']}, short side {model['short_side']} pixels, {sampling['rois']} RoIs and "
        f"{sampling['proposals']} proposals per image.",
        f"{optimiser['kind']}, learning rate {optimiser['learning_rate']:g}, {optimiser['schedule']}; seeds {seeds}.",
        f"Evaluated on {first['heldout']} held-out images; AP in points, mean (lowest to highest) over seeds.",
        f"Machine: {first['machine']}; {versions}; {mean(cell['cpu_s'] for cell in results):.0f} CPU s per cell.",
    )
    return "\n".join(sentences)
