"""From a spec's text to a plain tree, and from a failed check to sentences a person can act on."""

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import NotFoundError, SpecError, StorageError
from pipeline.storage.uris import has_scheme, home_path, is_local, local_path

Spec = TypeVar("Spec", bound=BaseModel)

WEIGHTS_WORDS = ("demo", "coco", "untrained")
_WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which moreover refuses a key that stands twice."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    # YAML 1.2 calls a doubled key an error and PyYAML keeps the last one, so half a spec could vanish unseen.
    seen: set[str] = set()
    # `!!map [1]` brings a node of another kind, which the constructor refuses in YAML's words.
    for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        key = str(getattr(key_node, "value", ""))
        if key in seen:
            line = key_node.start_mark.line + 1
            raise SpecError(f"The key {key} stands twice in the job spec (again in line {line}); keep one.")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_spec_text(path: str | Path) -> str:
    """Read the spec file, local or remote.

    Raises:
        SpecError: it does not exist, may not be read, or is no UTF-8 text.
    """
    try:
        if has_scheme(str(path)):
            from pipeline.storage.storage import Storage

            return Storage().read(str(path)).decode("utf-8-sig")
        return home_path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotFoundError):
        raise SpecError(f"The job spec {path} does not exist.") from None
    except UnicodeDecodeError:
        raise SpecError(f"The job spec {path} is not UTF-8 text.") from None
    except (OSError, StorageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise SpecError(f"The job spec {path} cannot be read: {str(reason).removesuffix('.')}.") from None


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse the spec's YAML with the safe loader.

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
        raise SpecError(f"The job spec {source} is not valid YAML{where}: {problem}.") from None
    except RecursionError:
        raise SpecError(f"The job spec {source} is nested too deeply.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SpecError(f"The job spec {source} must hold keys and values, such as `input: {{uri: photos/}}`.")
    return tree


def read_spec(kind: type[Spec], path: str | Path | None, overrides: Mapping[str, object] | None) -> Spec:
    """Read a YAML spec, lay the flags over it, and check the whole.

    Args:
        kind: what the tree must become.
        path: a YAML file, local or remote; None when the flags say everything.
        overrides: values by dotted key, `{"model.preset": "htc_r101_fpn"}`; None stands for a flag not given.

    Raises:
        SpecError: one sentence per problem, all problems at once.
    """
    tree: dict[str, Any] = parse_yaml(read_spec_text(path), str(path)) if path is not None else {}
    for key, value in (overrides or {}).items():
        if value is not None:
            set_dotted(tree, key, value)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise SpecError(describe_problems(error, kind, tree, source=path)) from None


def set_dotted(tree: dict[str, Any], key: str, value: object) -> None:
    """Set `a.b` in a tree of dicts, making the section when it is not there."""
    *sections, leaf = key.split(".")
    for section in sections:
        branch = tree.get(section)
        if not isinstance(branch, dict):
            # A section that is no mapping is a mistake to be reported, unless it is simply empty ("model:").
            if branch is not None:
                return
            branch = tree[section] = {}
        tree = branch
    tree[leaf] = value


def absolute_uri(uri: str) -> str:
    """Make a local path absolute against the current folder; a URI with a scheme stays as it is."""
    if not is_local(uri):
        return uri
    path = home_path(local_path(uri))
    # resolve() would also follow symlinks and so rename the user's own folder; it is needed for `..` only.
    return str(path.resolve() if ".." in path.parts else path.absolute())


def weights_reference(weights: str) -> str:
    """Tell a word ("demo", "coco", "untrained") from a path, and make the path absolute.

    Raises:
        SpecError: neither a word nor anything like a weights file; the nearest word is named.
    """
    if weights in WEIGHTS_WORDS:
        return weights
    looks_like_path = "/" in weights or weights.endswith(_WEIGHTS_SUFFIXES) or Path(weights).exists()
    if not looks_like_path:
        raise SpecError(
            f"model.weights must be demo, coco, untrained, or the path of a .pth or .safetensors file, "
            f"not {weights!r}{_suggestion(weights, WEIGHTS_WORDS, '')}."
        )
    return absolute_uri(weights)


def describe_problems(
    error: ValidationError, spec: type[BaseModel], tree: dict[str, Any], *, source: str | Path | None
) -> str:
    """Turn every failed check into one sentence that names the key by its dotted path."""
    sentences: list[str] = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        sentence = _sentence(problem["type"], problem["loc"], spec, tree, problem["msg"])
        if sentence not in sentences:
            sentences.append(sentence)
    if len(sentences) == 1:
        return sentences[0]
    where = f"The job spec {source}" if source is not None else "The job spec"
    return "\n".join([f"{where} has {len(sentences)} problems:", *(f"- {sentence}" for sentence in sentences)])


def _sentence(
    kind: str, location: tuple[int | str, ...], spec: type[BaseModel], tree: dict[str, Any], message: str
) -> str:
    key, section, description = _locate(location, spec)
    dotted = ".".join(key)
    if kind == "missing":
        inner = _model_of(spec, key[0])
        has_uri = inner is not None and "uri" in inner.model_fields
        flag = {"input": "INPUT", "output": "OUTPUT"}.get(key[0]) if has_uri else None
        way_out = f"; give it in the spec, or as {flag} on the command line" if flag else ""
        missing = f"{dotted}.uri" if has_uri and len(key) == 1 else dotted
        return f"{missing} is missing{way_out}."
    if kind == "extra_forbidden":
        known = list(section.model_fields)
        prefix = "".join(f"{part}." for part in key[:-1])
        nearest = _suggestion(key[-1], known, prefix) or _elsewhere(key[-1], spec)
        names = ", ".join(known)
        place = f"the section {'.'.join(key[:-1])}" if len(key) > 1 else "the job spec"
        return f"{dotted} is not a key of {place}{nearest}; its keys are {names}."
    value: Any = tree
    for part in key:
        value = value.get(part) if isinstance(value, dict) else value
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        model = _model_of(section, key[-1])
        names = ", ".join(model.model_fields) if model else "keys"
        return f"{dotted} must be a section with the keys {names}, not {_shown(value)}."
    if kind == "value_error":
        return f"{dotted}: {message.removeprefix('Value error, ')}."
    if description is None:
        return f"{dotted}: {message[:1].lower()}{message[1:]}, not {_shown(value)}."
    return f"{dotted} must be {description}, not {_shown(value)}."


def _locate(location: tuple[int | str, ...], spec: type[BaseModel]) -> tuple[list[str], type[BaseModel], str | None]:
    """Follow an error's location down to a field: its path, the section it stands in, its description.

    Locations also hold the names of union members ("int", "literal"); they mean nothing to a user.
    """
    section, path, description = spec, [], None
    for index, part in enumerate(location):
        path.append(str(part))
        field = section.model_fields.get(str(part))
        description = field.description if field else None
        inner = _model_of(section, str(part))
        if inner is None or index + 1 == len(location):
            break
        section = inner
    return path, section, description


def _model_of(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    field = section.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _suggestion(word: str, known: list[str] | tuple[str, ...], prefix: str) -> str:
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{nearest[0]}?" if nearest else ""


def _elsewhere(word: str, spec: type[BaseModel]) -> str:
    """Name the section that does have this key: `batch_size` at the top belongs to compute."""
    for name in spec.model_fields:
        inner = _model_of(spec, name)
        if inner is not None and word in inner.model_fields:
            return f"; did you mean {name}.{word}?"
    return ""


# A few kilobytes of YAML aliases stand for lists of billions of words, which must not be spelt out.
_shortened = reprlib.Repr()
_shortened.maxlevel = 3
_shortened.maxlist = _shortened.maxtuple = _shortened.maxdict = 20
_shortened.maxstring = _shortened.maxother = 80


def _shown(value: object) -> str:
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if isinstance(value, bool | None) else _shortened.repr(value)
    # Line breaks would tear the one sentence apart.
    return re.sub(r"\s+", " ", text if len(text) <= 60 else text[:57] + "...")
