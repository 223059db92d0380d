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
from typing import Any

import yaml

from jobs.manifests.kustomize import KUSTOMIZATION
from jobs.manifests.pods import Manifest
from pipeline.errors import SpecError

# The names that kustomize looks for.
FILES = (KUSTOMIZATION, "kustomization.yml", "Kustomization")
# How a patch is given: by fields of today, and those of earlier releases that still work.
_PATCH_FIELDS = ("patches", "patchesStrategicMerge", "patchesJson6902")
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
        if report.built_by and not any(problem.startswith(f"{each}/") for problem in report.problems):
            report.problems += _build(report.built_by, each)
    return report


def _problems_of(folder: Path) -> list[str]:
    path, kustomization = _load_kustomization(folder)
    objects = list(_objects_of(folder, seen=()))
    problems = []
    for field_name in _PATCH_FIELDS:
        for number, patch in enumerate(kustomization.get(field_name) or [], 1):
            for target, text in _targets_of(folder, patch):
                if any(_matches(target, each) for each in objects):
                    continue
                problems.append(
                    f"{path}: {field_name} {number}{text} is for {_describe(target)}, which is not among its "
                    f"resources; there {_alternatives(target, objects)}."
                )
    return problems


def _objects_of(folder: Path, *, seen: tuple[Path, ...]) -> Iterator[Manifest]:
    """Yield the objects of a kustomization, before its own patches; those of other places (URLs) are left out."""
    path, kustomization = _load_kustomization(folder)
    for entry in [*(kustomization.get("resources") or []), *(kustomization.get("components") or [])]:
        place = Path(os.path.normpath(folder / str(entry)))
        if place.is_dir():
            if place.resolve() in seen:
                raise SpecError(f"{path} includes itself by {entry}.")
            yield from _objects_of(place, seen=(*seen, folder.resolve()))
        elif place.is_file():
            yield from _load(place)
        elif "://" not in str(entry) and not re.match(r"[\w.-]+\.[a-z]{2,}[/:]|git@", str(entry)):
            raise SpecError(f"{path} names {entry}, which does not exist.")
    for generated, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
        for each in kustomization.get(generated) or []:
            yield {"apiVersion": "v1", "kind": kind, "metadata": {"name": each.get("name", "")}}


def _targets_of(folder: Path, patch: Any) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the targets of a patch, each with the patch's file as text."""
    if isinstance(patch, str):
        is_file = "\n" not in patch and (folder / patch).is_file()
        documents = _load(folder / patch) if is_file else _parse(patch, folder)
        yield from ((_own_target(each), f" ({patch})" if is_file else "") for each in documents)
        return
    place = str(patch.get("path") or "")
    if place and not (folder / place).is_file():
        raise SpecError(f"{folder / KUSTOMIZATION}: the patch {place} does not exist.")
    said = f" ({place})" if place else ""
    if patch.get("target"):
        yield {key: str(value) for key, value in patch["target"].items()}, said
        return
    documents = _load(folder / place) if place else _parse(str(patch.get("patch") or ""), folder)
    yield from ((_own_target(each), said) for each in documents)


def _own_target(document: Manifest) -> dict[str, str]:
    group, _, version = str(document.get("apiVersion", "")).rpartition("/")
    metadata = document.get("metadata") or {}
    target = {
        "group": group,
        "version": version,
        "kind": str(document.get("kind", "")),
        "name": metadata.get("name", ""),
    }
    # As a pattern, like a target's.
    return {key: re.escape(str(value)) for key, value in target.items() if value}


def _matches(target: dict[str, str], manifest: Manifest) -> bool:
    group, _, version = str(manifest.get("apiVersion", "")).rpartition("/")
    metadata = manifest.get("metadata") or {}
    actual = {
        "group": group,
        "version": version,
        "kind": str(manifest.get("kind", "")),
        "name": str(metadata.get("name", "")),
        "namespace": str(metadata.get("namespace", "")),
    }
    # kustomize matches whole texts; selectors of labels are left to it.
    return all(re.fullmatch(pattern, actual[key]) for key, pattern in target.items() if key in actual)


def _describe(target: dict[str, str]) -> str:
    words = [target[key].replace("\\", "") for key in ("kind", "name") if target.get(key)]
    return " ".join(words) or "an object without kind and name"


def _alternatives(target: dict[str, str], objects: Iterable[Manifest]) -> str:
    named = [
        (str(each.get("kind", "")), str((each.get("metadata") or {}).get("name", "")))
        for each in objects
        if isinstance(each, dict)
    ]
    same_kind = [f"{kind} {name}" for kind, name in named if kind == target.get("kind")]
    return f"are {', '.join(same_kind or [f'{kind} {name}' for kind, name in named]) or 'none'}"


def _load_kustomization(folder: Path) -> tuple[Path, Manifest]:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise SpecError(f"{folder} is named as a resource, and has no {KUSTOMIZATION}.")
    documents = _load(path)
    return path, documents[0] if documents else {}


def _load(path: Path) -> list[Manifest]:
    return _parse(path.read_text(encoding="utf-8"), path)


def _parse(text: str, place: Path) -> list[Manifest]:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" in line {line + 1}" if line is not None else ""
        raise SpecError(f"{place} is not valid YAML{where}.") from error
    return [each for each in documents if isinstance(each, dict)]


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
    said = next((line for line in done.stderr.splitlines() if line.startswith("error: ")), done.stderr.strip())
    return [f"{folder}: {program} cannot build it: {said.removeprefix('error: ')}"]
