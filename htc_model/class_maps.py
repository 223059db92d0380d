"""Class maps of several networks joined by name: one list of classes, and each network's place in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from htc_model.config import ModelConfig, ModelConfigError


@dataclass(frozen=True)
class ClassMap:
    """The classes that several networks know together.

    classes, category_ids: those of the first network in its order, then what the others add.
    own_labels: by network, the network's own label of each of these classes; None for a class that it does not know.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    own_labels: tuple[tuple[int | None, ...], ...]


def join_classes(configs: Sequence[ModelConfig], names: Sequence[str] | None = None) -> ClassMap:
    """Join the classes of several networks by name, whatever their order.

    Args:
        configs: at least one.
        names: of the networks, for messages; by default those of their configurations.

    Raises:
        ModelConfigError: two networks give one class different category ids, or one category id to different classes; a
            network names a class twice; or a network shares no class with any other. The message names both networks.
    """
    names = [config.name for config in configs] if names is None else names
    ids: dict[str, tuple[int, str]] = {}
    owners: dict[int, tuple[str, str]] = {}
    for config, name in zip(configs, names, strict=True):
        if len(set(config.classes)) < len(config.classes):
            twice = next(each for each in config.classes if config.classes.count(each) > 1)
            raise ModelConfigError(f"{name} names the class {twice!r} twice, so that classes cannot be joined by name.")
        for category, category_id in zip(config.classes, config.category_ids, strict=True):
            known_id, first = ids.setdefault(category, (category_id, name))
            if known_id != category_id:
                raise ModelConfigError(
                    f"The class {category!r} has the category id {known_id} in {first} and {category_id} in {name}; "
                    "the members of an ensemble must agree."
                )
            known, first = owners.setdefault(category_id, (category, name))
            if known != category:
                raise ModelConfigError(
                    f"The category id {category_id} is {known!r} in {first} and {category!r} in {name}; the members of "
                    "an ensemble must agree."
                )
    _check_shared(configs, names)
    classes = tuple(ids)
    own_labels = []
    for config in configs:
        places = {category: place for place, category in enumerate(config.classes)}
        own_labels.append(tuple(places.get(category) for category in classes))
    return ClassMap(classes, tuple(category_id for category_id, _ in ids.values()), tuple(own_labels))


def ensemble_config(configs: Sequence[ModelConfig], names: Sequence[str] | None = None) -> ModelConfig:
    """Return the first network's configuration with the classes of all, as the whole ensemble's.

    Raises:
        ModelConfigError: the classes cannot be joined, or a class has no member with masks while others have.
    """
    names = [config.name for config in configs] if names is None else names
    joined = join_classes(configs, names)
    has_masks = any(config.has_masks for config in configs)
    for place, category in enumerate(joined.classes if has_masks else ()):
        knowing = [index for index, own in enumerate(joined.own_labels) if own[place] is not None]
        if not any(configs[index].has_masks for index in knowing):
            knowers = " and ".join(names[index] for index in knowing)
            raise ModelConfigError(
                f"The class {category!r} is known only by {knowers}, without masks, while others have masks; add "
                "a member with masks that knows it."
            )
    return replace(
        configs[0],
        name="+".join(config.name for config in configs),
        classes=joined.classes,
        category_ids=joined.category_ids,
        has_masks=has_masks,
    )


def _check_shared(configs: Sequence[ModelConfig], names: Sequence[str]) -> None:
    if len(configs) == 1:
        return
    for index, (config, name) in enumerate(zip(configs, names, strict=True)):
        others = {each for other, of in enumerate(configs) if other != index for each in of.classes}
        if not others & set(config.classes):
            rest = [each for other, each in enumerate(names) if other != index]
            raise ModelConfigError(
                f"{name} ({_few(config.classes)}) shares no class with {_few(rest)} ({_few(sorted(others))}), so there "
                "is nothing to average; give it a run of its own."
            )


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")
