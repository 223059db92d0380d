"""Checks a kustomize tree for what kustomize builds without a word: patches for objects that are not there.

kustomize ignores a patch whose target matches nothing (one that names its object in its own text it refuses), so that a
job that was renamed runs without its patches.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError

from jobs.manifests.kustomize import KUSTOMIZATION
from jobs.manifests.pods import Manifest
from pipeline.errors import SpecError


class _Target(BaseModel):
    """What a patch is for; each field is a regular expression. Selectors of labels are left to kustomize."""

    group: str | None = None
    version: str | None = None
    kind: str | None = None
    name: str | None = None
    namespace: str | None = None


class _Patch(BaseModel):
    path: str | None = None
    patch: str | None = None
    target: _Target | None = None


class _Generator(BaseModel):
    name: str = ""


class _Kustomization(BaseModel):
    """The fields of a kustomization that name objects, also those of earlier releases that still work."""

    resources: list[str] | None = None
    components: list[str] | None = None
    patches: list[_Patch] | None = None
    patchesStrategicMerge: list[str] | None = None  # noqa: N815 - kustomize's names
    patchesJson6902: list[_Patch] | None = None  # noqa: N815
    configMapGenerator: list[_Generator] | None = None  # noqa: N815
    secretGenerator: list[_Generator] | None = None  # noqa: N815


# The names that kustomize looks for.
FILES = (KUSTOMIZATION, "kustomization.yml", "Kustomization")
TIMEOUT_S = 60.0


@dataclass
class TreeReport:
    """What a check found.

    kustomizations: folders that were checked. problems: a sentence each. built_by: the program that built them all,
    None where there is none on this machine.
    """

    kustomizations: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    built_by: str | None = None


def check_tree(folder: Path) -> TreeReport:
    """Check every kustomization in a folder, and build it where kubectl or kustomize is installed.

    Raises:
        SpecError: the folder holds no kustomization, or one that is no YAML.
    """
    found = sorted({path.parent for name in FILES for path in folder.rglob(name)})
    if not found:
        raise SpecError(
            f"{folder} holds no {KUSTOMIZATION}; htc manifests SPEC --image IMAGE --kustomize DIR writes them."
        )
    report = TreeReport(kustomizations=found, built_by=_builder())
    for each in found:
        try:
            report.problems += _problems_of(each)
        except SpecError as error:
            report.problems.append(str(error))
        # kustomize's own sentence, where ours has not said it already.
        if report.built_by and not any(problem.startswith((f"{each}/", f"{each} ")) for problem in report.problems):
            report.problems += _build(report.built_by, each)
    return report


def _problems_of(folder: Path) -> list[str]:
    path, kustomization = _load_kustomization(folder)
    objects = list(_objects_of(folder, seen=()))
    problems = []
    for name, number, target, place in _targets_of(folder, path, kustomization):
        if not any(_matches(target, each, path) for each in objects):
            said = f" ({place})" if place else ""
            problems.append(
                f"{path}: {name} {number}{said} is for {_describe(target)}, which is not among its resources; there "
                f"{_alternatives(target, objects)}."
            )
    return problems


def _objects_of(folder: Path, *, seen: tuple[Path, ...]) -> Iterator[Manifest]:
    """Yield the objects of a kustomization, before its own patches; those of other places (URLs) are left out."""
    path, kustomization = _load_kustomization(folder)
    for entry in [*(kustomization.resources or []), *(kustomization.components or [])]:
        place = Path(os.path.normpath(folder / entry))
        if place.is_dir():
            if place.resolve() in (*seen, folder.resolve()):
                raise SpecError(f"{path} includes itself by {entry}.")
            yield from _objects_of(place, seen=(*seen, folder.resolve()))
        elif place.is_file():
            yield from _load(place)
        elif "://" not in entry and not re.match(r"[\w.-]+\.[a-z]{2,}[/:]|git@", entry):
            raise SpecError(f"{path} names {entry}, which does not exist.")
    generated = (("ConfigMap", kustomization.configMapGenerator), ("Secret", kustomization.secretGenerator))
    for kind, generators in generated:
        for generator in generators or []:
            yield {"apiVersion": "v1", "kind": kind, "metadata": {"name": generator.name}}


def _targets_of(
    folder: Path, path: Path, kustomization: _Kustomization
) -> Iterator[tuple[str, int, dict[str, str], str]]:
    """Yield the targets of all patches: field, number, target, and the patch's file if it has one."""
    for number, text in enumerate(kustomization.patchesStrategicMerge or [], 1):
        is_file = "\n" not in text and (folder / text).is_file()
        for document in _load(folder / text) if is_file else _parse(text, path):
            yield "patchesStrategicMerge", number, _own_target(document), text if is_file else ""
    fields = (("patches", kustomization.patches), ("patchesJson6902", kustomization.patchesJson6902))
    for name, patches in fields:
        for number, patch in enumerate(patches or [], 1):
            place = patch.path or ""
            if place and not (folder / place).is_file():
                raise SpecError(f"{path}: {name} {number} is in {place}, which does not exist.")
            if patch.target is not None:
                yield name, number, patch.target.model_dump(exclude_none=True), place
                continue
            for document in _load(folder / place) if place else _parse(patch.patch or "", path):
                yield name, number, _own_target(document), place


def _own_target(document: Manifest) -> dict[str, str]:
    group, _, version = str(document.get("apiVersion", "")).rpartition("/")
    metadata = document.get("metadata") or {}
    target = {"group": group, "version": version, "kind": document.get("kind"), "name": metadata.get("name")}
    # As a pattern, like a target's.
    return {key: re.escape(str(value)) for key, value in target.items() if value}


def _matches(target: dict[str, str], manifest: Manifest, path: Path) -> bool:
    group, _, version = str(manifest.get("apiVersion", "")).rpartition("/")
    metadata = manifest.get("metadata") or {}
    actual = {
        "group": group,
        "version": version,
        "kind": str(manifest.get("kind", "")),
        "name": str(metadata.get("name", "")),
        "namespace": str(metadata.get("namespace", "")),
    }
    try:
        # kustomize matches whole texts.
        return all(re.fullmatch(pattern, actual[key]) for key, pattern in target.items())
    except re.error as error:
        raise SpecError(f"{path}: the target {_describe(target)} is no regular expression: {error}.") from error


def _describe(target: dict[str, str]) -> str:
    words = [target[key].replace("\\", "") for key in ("kind", "name") if target.get(key)]
    return " ".join(words) or "an object without kind and name"


def _alternatives(target: dict[str, str], objects: Iterable[Manifest]) -> str:
    named = [(str(each.get("kind", "")), str((each.get("metadata") or {}).get("name", ""))) for each in objects]
    same_kind = [f"{kind} {name}" for kind, name in named if kind == target.get("kind")]
    return f"are {', '.join(same_kind or [f'{kind} {name}' for kind, name in named]) or 'none'}"


def _load_kustomization(folder: Path) -> tuple[Path, _Kustomization]:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise SpecError(f"{folder} is named as a resource, and has no {KUSTOMIZATION}.")
    documents = _load(path)
    if len(documents) > 1:
        raise SpecError(f"{path} holds {len(documents)} documents; kustomize reads one.")
    try:
        return path, _Kustomization.model_validate(documents[0] if documents else {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step + 1) if isinstance(step, int) else step for step in first["loc"])
        raise SpecError(f"{path}: {place}: {first['msg']}.") from error


def _load(path: Path) -> list[Manifest]:
    try:
        return _parse(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as text: {error}.") from error


def _parse(text: str, place: Path) -> list[Manifest]:
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" in line {line + 1}" if line is not None else ""
        raise SpecError(f"{place} is not valid YAML{where}.") from error
    if not all(isinstance(each, dict) for each in documents):
        raise SpecError(f"{place} holds something else than objects (key: value).")
    return documents


def _builder() -> str | None:
    return next((name for name in ("kubectl", "kustomize") if shutil.which(name)), None)


def _build(program: str, folder: Path) -> list[str]:
    words = [program, "kustomize" if program == "kubectl" else "build", str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [f"{folder}: {program} did not build it within {TIMEOUT_S:.0f} s; does it name a URL?"]
    if done.returncode == 0:
        return []
    return [f"{folder}: {program} cannot build it: {_one_sentence(done.stderr)}"]


def _one_sentence(said: str) -> str:
    """Return what kubectl or kustomize wrote, without its time stamps and line breaks."""
    text = said.partition("err=")[2] or said.partition("rror: ")[2] or said
    words = " ".join(text.split()).strip('"<> ')
    return words if len(words) <= 500 else f"{words[:500]} ..."
