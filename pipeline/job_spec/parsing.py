"""Reads a spec file: YAML to a plain tree, flags over it, and the check of the result."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import ConstructorError

from pipeline.errors import NotFoundError, SpecError, StorageError
from pipeline.job_spec.messages import RUN_FLAGS, describe_problems, suggestion
from pipeline.storage.uris import absolute_uri, has_scheme, home_path

Spec = TypeVar("Spec", bound=BaseModel)

WEIGHTS_WORDS = ("demo", "coco", "untrained")
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses duplicate keys."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    # YAML 1.2 calls a duplicate key an error. PyYAML keeps the last one, so half a spec could be lost unnoticed.
    seen: set[str] = set()
    # `!!map [1]` is a node of another kind; the constructor refuses it with YAML's own message.
    for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        key = str(getattr(key_node, "value", ""))
        if key in seen:
            raise ConstructorError(problem=f"the key {key} appears twice; keep one", problem_mark=key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_spec_text(path: str | Path, *, name: str = "job spec") -> str:
    """Read the spec file, local or remote; `name` is what messages call it.

    Raises:
        SpecError: it does not exist, cannot be read, or is not UTF-8 text.
    """
    try:
        if has_scheme(str(path)):
            from pipeline.storage.storage import Storage

            return Storage().read(str(path)).decode("utf-8-sig")
        return home_path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotFoundError):
        raise SpecError(f"The {name} {path} does not exist.") from None
    except UnicodeDecodeError:
        raise SpecError(f"The {name} {path} is not UTF-8 text.") from None
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"The {name} {path} cannot be read: {str(reason).removesuffix('.')}.") from None


def parse_yaml(text: str, source: str, *, name: str = "job spec") -> dict[str, Any]:
    """Parse the spec's YAML with the safe loader; `name` is what messages call the spec.

    Raises:
        SpecError: bad YAML (with its line), or something other than keys and values at the top.
    """
    try:
        # _UniqueKeyLoader is a SafeLoader: it builds plain values only.
        tree = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  # nosec B506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise SpecError(f"The {name} {source} is not valid YAML{where}: {problem}.") from None
    except RecursionError:
        raise SpecError(f"The {name} {source} is nested too deeply.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SpecError(f"The {name} {source} must hold keys and values, such as `input: {{uri: photos/}}`.")
    return tree


def parse_value(text: str, name: str) -> Any:
    """Parse one value as YAML: a number, true, null, a list, or text.

    Raises:
        SpecError: it is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  # nosec B506
    except (yaml.YAMLError, RecursionError):
        raise SpecError(f"The value of {name} is not valid YAML: {text!r:.60}; put text into quotes.") from None


def read_spec(
    kind: type[Spec],
    path: str | Path | None,
    overrides: Mapping[str, object] | None,
    *,
    name: str = "job spec",
    flags: Mapping[str, str] = RUN_FLAGS,
    replaced: Mapping[str, Sequence[str]] = MappingProxyType({}),
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda tree: tree,
) -> Spec:
    """Read a YAML spec, override its values with the flags, and check the result.

    Args:
        kind: the model to validate the tree with.
        path: a YAML file, local or remote; None when flags give everything.
        overrides: values by dotted key, `{"model.preset": "htc_r101_fpn"}`; None stands for a flag not given.
        name, flags: see `describe_problems`.
        replaced: by the key of a flag, the keys of the file that are left out when it is given with another value.
        prepare: brings the file's tree into the form whose keys the overrides name; may raise ValueError.

    Raises:
        SpecError: one sentence per problem, all problems at once.
    """
    tree: dict[str, Any] = {} if path is None else parse_yaml(read_spec_text(path, name=name), str(path), name=name)
    try:
        tree = prepare(tree)
        for key, others in replaced.items():
            if (overrides or {}).get(key) is not None:
                _leave_out(tree, others, unless=(overrides or {})[key])
        for key, value in (overrides or {}).items():
            if value is not None:
                set_dotted(tree, key, value)
        # Python code names whole sections as well.
        tree = prepare(tree)
    except ValueError as error:
        raise SpecError(f"{f'The {name} {path}' if path is not None else f'The {name}'}: {error}.") from None
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SpecError(describe_problems(error, kind, tree, source=path, name=name, flags=flags)) from None


def set_dotted(tree: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in a tree of dicts, creating missing sections."""
    *sections, leaf = key.split(".")
    for section in sections:
        branch = tree.get(section)
        if not isinstance(branch, dict):
            # An empty section ("model:") is None; anything else that is no mapping is reported by the check.
            if branch is not None:
                return
            branch = tree[section] = {}
        tree = branch
    tree[leaf] = value


def _leave_out(tree: dict[str, Any], keys: Sequence[str], *, unless: object) -> None:
    """Remove dotted keys of one section, unless one of them has this value already."""
    section = tree.get(keys[0].split(".")[0])
    names = [key.split(".")[1] for key in keys]
    if isinstance(section, dict) and unless not in [section.get(name) for name in names]:
        for name in names:
            section.pop(name, None)


def weights_reference(weights: str) -> str:
    """Return "demo", "coco" and "untrained" unchanged, and a path made absolute.

    Raises:
        SpecError: it is neither a known word nor like a weights file; the message suggests the nearest word.
    """
    if weights in WEIGHTS_WORDS:
        return weights
    looks_like_path = "/" in weights or weights.endswith(_WEIGHTS_SUFFIXES) or Path(weights).exists()
    if not looks_like_path:
        raise SpecError(
            f"model.weights must be demo, coco, untrained, or the path of a .pth or .safetensors file, "
            f"not {weights!r}{suggestion(weights, WEIGHTS_WORDS, '') or '.'}"
        )
    return absolute_uri(weights)
