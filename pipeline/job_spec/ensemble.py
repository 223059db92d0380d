"""Ensembles in the spec: several networks with their weights and votes, as a section, a list, or words of flags."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from htc_model.config import PRESETS
from htc_model.weights.model_zoo import BUNDLED_PRESET
from pipeline.job_spec.parsing import WEIGHTS_WORDS
from pipeline.settings import Section, digits_as_number
from pipeline.storage.config import Uri
from pipeline.storage.uris import base_name, without_query

MOST_MEMBERS = 16
ENSEMBLE = "ensemble"
"""What `model.weights` is where an ensemble is."""


def settle_together(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return preset and weights, where one of them is named, such that the bundled model's go together."""
    chosen = dict(values)
    if chosen.get("preset", BUNDLED_PRESET) == BUNDLED_PRESET:
        chosen.setdefault("weights", "demo")
    if chosen.get("weights") == "demo":
        chosen.setdefault("preset", BUNDLED_PRESET)
    return chosen


class MemberSection(Section):
    """One network of an ensemble.

    preset, weights: as `model.preset` and `model.weights`; one of them is enough.
    weight: its vote in averages, relative to the others'.
    """

    preset: str = Field(default="htc_r50_fpn", min_length=1, description="the name of a preset")
    weights: Uri = Field(default="coco", min_length=1, description='"demo", "coco", "untrained", or a path or URI')
    weight: Annotated[float, BeforeValidator(digits_as_number)] = Field(
        default=1.0, gt=0, le=1000, allow_inf_nan=False, description="a number above 0"
    )

    @model_validator(mode="before")
    @classmethod
    def _settle(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        own = values.get("factory") or (values["preset"] if _is_foreign(values.get("preset")) else None)
        if own is not None:
            raise ValueError(
                f"{own} cannot be a member of an ensemble: the heads of a model of your own cannot be run at given "
                "boxes, as those of the presets' networks can; give it a run of its own"
            )
        if not {"preset", "weights"} & set(values):
            raise ValueError("a member names its preset, its weights, or both")
        return settle_together(values)

    @property
    def label(self) -> str:
        """What messages call the member: its preset, and the file of its own weights."""
        if self.weights in WEIGHTS_WORDS:
            return self.preset
        return f"{self.preset} ({base_name(without_query(self.weights))})"


def _is_foreign(preset: object) -> bool:
    """Return whether a name is of another library's models, such as torchvision:maskrcnn_resnet50_fpn_v2."""
    return isinstance(preset, str) and ":" in preset


def read_member(text: str) -> dict[str, Any]:
    """Read a member as the flag `--member` names it: PRESET, WEIGHTS, or PRESET=WEIGHTS, each with *VOTE behind it.

    A word is a preset where one has that name; a path may hold "=" and "*".
    """
    name, star, vote = text.rpartition("*")
    if not star or not _is_number(vote):
        name, vote = text, ""
    preset, equals, weights = name.partition("=")
    if equals and "/" not in preset:
        member = {"preset": preset, "weights": weights}
    elif name in PRESETS or (_is_foreign(name) and "/" not in name):
        member = {"preset": name}
    else:
        member = {"weights": name}
    return {**member, "weight": float(vote)} if vote else member


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) is not None


def _read_members(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        return value
    return tuple(read_member(each) if isinstance(each, str) else each for each in value)


class EnsembleSection(Section):
    """Several networks that see each image together: boxes and masks are averaged by votes.

    members: a list of sections, or of texts PRESET, WEIGHTS or PRESET=WEIGHTS.
    fusion: of the boxes that the members have found: "nms" and "soft_nms" of their means, or "wbf", weighted boxes
        fusion.
    spread: each member in a process of its own, which gets its share of the worker's GPUs (`compute.gpus_per_worker`).
    """

    members: Annotated[tuple[MemberSection, ...], BeforeValidator(_read_members)] = Field(
        min_length=1, max_length=MOST_MEMBERS, description=f"a list of 1 to {MOST_MEMBERS} members"
    )
    fusion: str = Field(default="nms", pattern="^(nms|soft_nms|wbf)$", description='"nms", "soft_nms" or "wbf"')
    spread: bool = Field(default=False, description="true or false")

    @property
    def preset(self) -> str:
        """The members' presets in one word, the value of `model.preset`."""
        return "+".join(member.preset for member in self.members)

    @property
    def labels(self) -> tuple[str, ...]:
        """What messages call the members, each by another name."""
        labels = [member.label for member in self.members]
        return tuple(
            label if labels.count(label) == 1 else f"{label} (members.{number})" for number, label in enumerate(labels)
        )

    def identity(self) -> dict[str, object]:
        """Return, by dotted key, what must be the same when a run is resumed; the fingerprint holds the weights."""
        members = {
            f"model.ensemble.members.{number}": f"{member.preset}, weight {member.weight:g}"
            for number, member in enumerate(self.members)
        }
        return {"model.ensemble.fusion": self.fusion, **members}

    def with_members(self, members: Sequence[MemberSection]) -> Self:
        """Return the section with other members."""
        return self.model_copy(update={"members": tuple(members)})


def gather_ensemble(tree: Any) -> Any:
    """Return a spec's tree with its ensemble in one place, `model.ensemble`.

    It may stand there, as `ensemble` beside `model`, or as a list in the place of `model`.

    Raises:
        ValueError: it stands in two of these places.
    """
    if not isinstance(tree, Mapping):
        return tree
    tree = dict(tree)
    found = [tree.pop("ensemble")] if tree.get("ensemble") is not None else []
    tree.pop("ensemble", None)
    model = tree.get("model")
    if isinstance(model, list | tuple):
        found.append(list(model))
        model = {}
    if isinstance(model, Mapping) and model.get("ensemble") is not None:
        found.append(model["ensemble"])
    if not found:
        return tree
    if len(found) > 1:
        raise ValueError("the ensemble is named twice; keep `ensemble`, `model.ensemble` or a list as `model`")
    section = {"members": list(found[0])} if isinstance(found[0], list | tuple) else found[0]
    if model is None or isinstance(model, Mapping):
        tree["model"] = {**(model or {}), "ensemble": section}
    return tree


_FLAGS = {"fusion": "fusion (--fusion)", "spread": "spread (--spread)"}


def settle_ensemble(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a model's section that holds an ensemble: its preset and weights are the ensemble's.

    An ensemble of one network is that network.

    Raises:
        ValueError: they name another network.
    """
    chosen = dict(values)
    section = chosen["ensemble"]
    alone = _only_member(section)
    if alone and not {"preset", "weights"} & set(chosen):
        del chosen["ensemble"]
        return settle_together(chosen | alone)
    if isinstance(section, Mapping) and set(section) <= set(_FLAGS):
        words = f"has {' and '.join(_FLAGS[key] for key in section)}" if section else "is empty"
        raise ValueError(
            f"ensemble {words}, and names no network; name each with --member or in ensemble.members, or leave it out"
        )
    named = section.preset if isinstance(section, EnsembleSection) else None
    if chosen.get("weights") == ENSEMBLE:
        # A spec that was written by this program.
        chosen.pop("preset", None)
    for key, flag in (("preset", "--model"), ("weights", "--weights")):
        if key in chosen and chosen[key] not in (named, ENSEMBLE):
            raise ValueError(f"{key} ({flag}) names one network, and ensemble (--member) names several; keep one")
    return {**chosen, "weights": ENSEMBLE}


def _only_member(section: object) -> dict[str, Any]:
    """Return preset and weights of the one member of a section that is as it should be; else nothing."""
    if not isinstance(section, Mapping) or section.get("fusion", "nms") not in ("nms", "wbf"):
        return {}
    members = section.get("members")
    if not isinstance(members, list | tuple) or len(members) != 1:
        return {}
    member = read_member(members[0]) if isinstance(members[0], str) else members[0]
    if not isinstance(member, Mapping) or not {"preset", "weights"} & set(member):
        return {}
    if _is_foreign(member.get("preset")) or set(member) - {"preset", "weights", "weight"}:
        return {}
    return {key: value for key, value in member.items() if key != "weight"}
