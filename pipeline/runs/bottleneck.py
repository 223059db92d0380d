"""What held a run up, by what the workers' models waited for; and the remedy, in one sentence.

Read and decode are done ahead, by many threads at once: their busy seconds say nothing about what would make the run
faster. A model that waits does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.messages import CAUSES, Cause

# With a quarter of the time lost, mending the cause gains a third; below that, a faster model gains more.
WORTH_NAMING = 0.25

Name = Literal["model", "start_up", "read", "decode", "upload", "encode", "write", "no_shard", "tail"]

IN_WORDS: Mapping[Cause, str] = {
    "start_up": "starting",
    "read": "waiting for reads",
    "decode": "waiting for decoding",
    "upload": "waiting for uploads",
    "infer": "model busy",
    "encode": "waiting for masks",
    "write": "waiting for writes",
    "no_shard": "without a shard",
    "tail": "idle at the end",
}

_REMEDIES: Mapping[Name, str] = {
    "model": "more workers or GPUs make the run faster",
    "start_up": "the run was short for its start; more images per run, or fewer workers, make it count less",
    "read": "raise storage.read_concurrency, or put workers and images nearer together (the bucket's region, a faster "
    "disk)",
    "decode": "give each worker more cores (compute.cpus_per_worker), or store smaller images",
    "upload": "give each worker more cores (compute.cpus_per_worker), or store smaller images",
    "encode": "give each worker more cores, with GPUs also compute.mask_processes, or raise model.score_threshold",
    "write": "make the shards larger (compute.shard_images), or put the workers nearer the output's store",
    "no_shard": "name the images in a listing file if the input takes long to list, or make the shards larger "
    "(compute.shard_images)",
    "tail": "make the shards smaller (compute.shard_images)",
}

_LOSSES: Mapping[Name, str] = {
    "model": "The model was busy {share} of the time",
    "start_up": "Starting the workers took {share} of their time",
    "read": "The model waited {share} of the time for reads",
    "decode": "The model waited {share} of the time for images to be decoded",
    "upload": "The model waited {share} of the time for copies to the GPU",
    "encode": "The model waited {share} of the time for masks to be encoded",
    "write": "The model waited {share} of the time for tables to be written",
    "no_shard": "Workers were without a shard {share} of the time while the input was listed or shards waited for "
    "their next attempt",
    "tail": "Workers were idle {share} of the time while the last shards were done",
}


@dataclass(frozen=True)
class Bottleneck:
    """What held a run up.

    name: "model", or the cause with the largest share of the workers' time. share: that share, 0 to 1.
    sentence: for the user, with the remedy.
    """

    name: Name
    share: float
    sentence: str


def find_bottleneck(seconds: Mapping[str, float]) -> Bottleneck | None:
    """Name the bottleneck; None before any second was counted.

    The start of the workers is named where it is the largest loss. Otherwise it is left out of the account, and the
    largest loss is named if it is a quarter or more of the rest; the model if none is.

    Args:
        seconds: of all workers, by cause; missing ones are 0.
    """
    known = {cause: max(0.0, seconds.get(cause, 0.0)) for cause in CAUSES}
    total = sum(known.values())
    if total <= 0:
        return None
    start_up, busy = known["start_up"], known["infer"]
    losses = {cause: known[cause] for cause in CAUSES if cause not in ("start_up", "infer")}
    worst = max(losses, key=lambda cause: losses[cause])
    name: Name = "model"
    if start_up >= max(losses[worst], WORTH_NAMING * total):
        name = "start_up"
    elif losses[worst] >= WORTH_NAMING * (total - start_up) and losses[worst] > 0:
        name = _name_of(worst)
    share = (busy if name == "model" else known[name]) / total
    return Bottleneck(name, round(share, 4), f"{_LOSSES[name].format(share=f'{share:.0%}')}: {_REMEDIES[name]}.")


def _name_of(cause: Cause) -> Name:
    return "model" if cause == "infer" else cause


def shares_of(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return every cause's share of the time, adding up to 1; empty before any second was counted."""
    total = sum(seconds.values())
    return {cause: seconds.get(cause, 0.0) / total for cause in CAUSES} if total > 0 else {}


def shares_in_words(shares: Mapping[str, float]) -> Iterable[str]:
    """Yield "model busy 62 %" and what else is worth a word, the largest first."""
    for cause in sorted(CAUSES, key=lambda cause: -shares.get(cause, 0.0)):
        if (share := shares.get(cause, 0.0)) >= 0.005:
            yield f"{IN_WORDS[cause]} {share:.0%}"
