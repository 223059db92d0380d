"""What the channels of a network's semantic branch mean: ids, names, and which of them are things."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from htc_model.coco_stuff_classes import COCO_STUFF_CLASSES, FIRST_STUFF_ID, PUBLISHED_CHANNELS
from htc_model.config import ModelConfig

OTHER, UNLABELED = "other", "unlabeled"
"""What belongs to no class: in maps that are made from instances, and in COCO-Stuff's."""
Kind = Literal["thing", "stuff", "rest"]


@dataclass(frozen=True)
class SemanticClass:
    """The meaning of one channel.

    class_id: unique in the network, and of a thing that the network finds the `category_id` of its instances.
    kind: "thing" for what has instances, "stuff" for what has none, "rest" for what belongs to no class.
    """

    class_id: int
    name: str
    kind: Kind


def semantic_classes(config: ModelConfig) -> tuple[SemanticClass, ...]:
    """Return the classes of a network's semantic branch, one per channel.

    They are those of its configuration, if it names them. Otherwise a network with 183 channels learned COCO-Stuff's
    maps, as the published checkpoints did; one with a channel more than it has object classes learned maps that were
    made from instances, with "other" as the last class; and the labels of other maps have no names.

    Args:
        config: of a network with the branch.
    """
    if config.semantic_names:
        return _named(config, config.semantic_names)
    if config.semantic_classes == PUBLISHED_CHANNELS and _has_ids_of_coco(config):
        return _coco_stuff()
    if config.semantic_classes == config.num_classes + 1:
        return _named(config, (*config.classes, OTHER))
    return _named(config, [f"label {label}" for label in range(config.semantic_classes)])


def _has_ids_of_coco(config: ModelConfig) -> bool:
    known = dict(enumerate(COCO_STUFF_CLASSES, 1))
    return all(
        known.get(number, name) == name for number, name in zip(config.category_ids, config.classes, strict=True)
    )


def _coco_stuff() -> tuple[SemanticClass, ...]:
    named = enumerate(COCO_STUFF_CLASSES, 1)
    known = [SemanticClass(number, name, "thing" if number < FIRST_STUFF_ID else "stuff") for number, name in named]
    return (*known, SemanticClass(0, UNLABELED, "rest"))


def _named(config: ModelConfig, names: Sequence[str]) -> tuple[SemanticClass, ...]:
    things = dict(zip(config.classes, config.category_ids, strict=True))
    # As in COCO-Stuff, the id is the label plus one, where no category of things has that id.
    is_free = all(label + 1 not in config.category_ids for label, name in enumerate(names) if name not in things)
    first_free = 1 if is_free else max(config.category_ids) + 1
    rest_id = 0 if 0 not in config.category_ids else max(config.category_ids) + 1 + len(names)
    found = []
    for label, name in enumerate(names):
        if name in things:
            # Once: an object class may be called "other", too.
            found.append(SemanticClass(things.pop(name), name, "thing"))
        elif name in {OTHER, UNLABELED}:
            found.append(SemanticClass(rest_id, name, "rest"))
        else:
            found.append(SemanticClass(first_free + label, name, "stuff"))
    return tuple(found)
