"""Training checkpoint: written atomically, read back by a run with the same settings only."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from htc_model.config import ModelConfig, config_from_dict, config_to_dict
from htc_model.finite import unusable_keys
from htc_model.training.spec import TrainingSpec

# Settings that may change when a run is resumed: they change speed or frequency, not what is computed.
_OPERATIONAL_KEYS = frozenset({
    "output", "loaders", "evaluate_epochs", "checkpoint_steps", "log_steps", "evaluate", "gpus_per_worker",
    "cpus_per_worker", "patience", "pictures", "loggers",
})  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed; the message is one sentence for a person."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a resumed run needs.

    step: how many steps are done. spec, config: plain values. model, optimiser, average: state dicts. scaler: the state
        of fp16's loss scale, empty for other precisions.
    """

    step: int
    spec: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    optimiser: dict[str, Any]
    average: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a temporary file, flush it to disk, then rename it: a kill leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            torch.save(vars(checkpoint), file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_checkpoint(path: Path, spec: dict[str, Any], config: ModelConfig) -> Checkpoint | None:
    """Read the checkpoint of a run that is resumed.

    Args:
        path: the checkpoint file.
        spec, config: of the run that resumes.

    Returns:
        the checkpoint; None if the file does not exist.

    Raises:
        CheckpointError: it belongs to another network or to other settings, which are named; or it is damaged, or
            holds values that are not finite.
    """
    if not path.exists():
        return None
    checkpoint = _load(path)
    theirs, ours = checkpoint.config, config_to_dict(config)
    if theirs["name"] != ours["name"]:
        raise CheckpointError(
            f"{path} is a checkpoint of {theirs['name']}, not of {ours['name']}; train into another output folder."
        )
    # Read with the current classes, so that settings that did not exist then have their defaults.
    their_spec = TrainingSpec.model_validate(checkpoint.spec).model_dump(mode="json")
    if their_spec["epochs"] > spec["epochs"]:
        raise CheckpointError(
            f"{path} was made with epochs {their_spec['epochs']}, which may grow, not shrink to {spec['epochs']}; "
            "train into another output folder."
        )
    their_config = config_to_dict(config_from_dict(theirs))
    # Checkpoints of earlier releases do not name the semantic classes, which changes nothing that is computed.
    their_config["semantic_names"] = their_config["semantic_names"] or ours["semantic_names"]
    different = _differences(their_spec, {**spec, "epochs": their_spec["epochs"]}) + _differences(their_config, ours)
    if different:
        raise CheckpointError(
            f"{path} was made with other settings: {'; '.join(different)}. "
            "Restore them or train into another output folder."
        )
    return checkpoint


def _load(path: Path) -> Checkpoint:
    advice = "remove it to train from the beginning, or put an earlier copy in its place"
    try:
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
        unusable = unusable_keys(checkpoint.model) or unusable_keys(checkpoint.average["state"])
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        # torch's own text is long, and advises to load the file without this protection.
        raise CheckpointError(
            f"{path} is not a readable checkpoint: it is damaged, or not a checkpoint of htc train; {advice}."
        ) from error
    unusable = unusable or _unusable_in(checkpoint.optimiser)
    if unusable:
        raise CheckpointError(
            f"{path} holds values that are not finite numbers, or variances below zero, in {len(unusable)} tensors, "
            f"the first of them {unusable[0]}; {advice}, with a lower optimiser.learning_rate."
        )
    return checkpoint


def _unusable_in(optimiser: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the tensors of an optimiser's state that are not finite, such as "optimiser.3.exp_avg"."""
    return tuple(
        f"optimiser.{number}.{key}"
        for number, buffers in optimiser.get("state", {}).items()
        for key in unusable_keys(buffers)
    )


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Describe by dotted key what differs, such as "model.short_side was 96, is 192"."""
    return [
        line
        for key in sorted(set(theirs) | set(ours))
        if key not in _OPERATIONAL_KEYS
        for line in _difference(key, theirs.get(key), ours.get(key))
    ]


def _difference(key: str, theirs: Any, ours: Any) -> list[str]:
    if theirs == ours:
        return []
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = sorted(set(theirs) | set(ours))
        return [line for name in names for line in _difference(f"{key}.{name}", theirs.get(name), ours.get(name))]
    return [f"{key} was {theirs!r}, is {ours!r}"]
