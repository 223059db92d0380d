"""Which model a spec means, of any family: its fingerprint, which decides what is resumed and what is done again.

A preset's is that of `pipeline.weights.fingerprint`. A factory's holds its name, the hash of its weights, the hash of
its options and of the spec's settings, and the versions of the packages, or the hash of the files, that its code is in.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from pipeline.job_spec.model import ModelSection
from pipeline.job_spec.model_reference import registered_factories
from pipeline.models.adapters import find_adapter
from pipeline.models.factory import check_options, find_factory
from pipeline.models.neighbours import with_neighbours
from pipeline.storage.storage import Storage
from pipeline.weights.cache import resolve_weights, weights_here
from pipeline.weights.fingerprint import UNTRAINED, ModelFingerprint, compute_fingerprint, file_sha256, resolve_preset

# Of one's own code beside the factory; more files than this are no model's, but a whole working folder.
_MOST_FILES = 2000


@dataclass(frozen=True)
class FactoryFingerprint(ModelFingerprint):
    """Identity of a model that a factory makes.

    preset: the factory, as the spec names it. weights_sha256: of the file, or of the library's own files;
        "untrained-v1"; or "default" where the factory chooses.
    config_sha256: of the options and of the spec's settings of detections.
    code: the packages with their versions, "torchvision 0.26.0", or the hash of the source files.
    """

    code: str = ""


def identify_model(
    section: ModelSection, storage: Storage | None = None, *, folders: Sequence[str] = ()
) -> tuple[ModelSection, ModelFingerprint]:
    """Return a spec's model with the preset that its weights name, and its fingerprint; fetches weights if necessary.

    Args:
        folders: see `factory.find_factory`, which finds a model's factory here already, before a worker is started: a
            wrong name or option ends here.

    Raises:
        ModelError: the factory is not found, cannot be imported, or does not take the options.
        WeightsUnavailableError: the weights are not available.
        SpecError: the section names another preset than the file.
    """
    if section.factory is None:
        section = resolve_preset(section, storage)
        return section, compute_fingerprint(section, storage)
    factory = find_factory(section.factory, folders)
    given = {} if section.weights == "default" else {"weights": section.weights}
    check_options(factory, {**section.options, **given}, section.factory)
    return section, fingerprint_of(section, storage)


def fingerprint_of(section: ModelSection, storage: Storage | None = None) -> ModelFingerprint:
    """Hash the model that a section describes, of any family, fetching its weights if they are not on this machine.

    Raises:
        ModelError: a library's own weights cannot be fetched, or its package is not installed.
        WeightsUnavailableError: the weights are not available.
    """
    if section.factory is None:
        return compute_fingerprint(section, storage)
    return _of_factory(section, _weights_sha256(section, storage))


def fingerprint_before_fetching(section: ModelSection) -> ModelFingerprint:
    """Return the fingerprint of a model whose weights are not on this machine yet, with an empty hash of them."""
    if section.factory is None:
        untrained = compute_fingerprint(section.model_copy(update={"weights": "untrained"}))
    else:
        untrained = _of_factory(section, "")
    return replace(untrained, weights_sha256="", trained=True)


def _of_factory(section: ModelSection, weights_sha256: str) -> FactoryFingerprint:
    reference = section.factory or section.preset
    settings: dict[str, object] = {
        "options": section.options,
        "score_threshold": section.score_threshold,
        "max_detections": section.max_detections,
    }
    adapter = find_adapter(reference)
    # Those of the default weights are hashed with them.
    if adapter is not None and section.weights != "default":
        files = adapter[0].load().settings_files(adapter[1])
        settings |= {"files": _files_sha256(tuple(files))} if files else {}
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return FactoryFingerprint(
        reference,
        weights_sha256,
        hashlib.sha256(canonical.encode()).hexdigest(),
        trained=section.weights != "untrained",
        code=code_version(reference),
    )


def is_here(section: ModelSection) -> bool:
    """Return whether everything that `fingerprint_of` needs is on this machine."""
    if section.ensemble is not None:
        return all(is_here(member) for member in section.members)
    if section.weights == "untrained":
        return True
    if section.factory is not None and section.weights == "default":
        adapter = find_adapter(section.factory)
        return adapter is None or adapter[0].load().is_default_here(adapter[1])
    path = weights_here(section)
    return path is not None and path.exists()


def _weights_sha256(section: ModelSection, storage: Storage | None) -> str:
    if section.weights == "untrained":
        return UNTRAINED
    if section.weights == "default":
        adapter = find_adapter(section.factory or "")
        files = adapter[0].load().default_files(adapter[1]) if adapter is not None else ()
        return _files_sha256(tuple(files)) if files else "default"
    path = resolve_weights(section, storage)
    if path is None:
        return UNTRAINED
    return _files_sha256((path,) if path.is_file() else tuple(_files_below(path)))


def _files_below(folder: Path) -> Iterator[Path]:
    yield from (each for each in sorted(folder.rglob("*")) if each.is_file() and not each.name.startswith("."))


def _files_sha256(files: tuple[Path, ...]) -> str:
    """Hash one file as `sha256sum` does, several by their names and hashes."""
    stats = tuple((each.stat().st_size, each.stat().st_mtime_ns) for each in files)
    return _hash_files(files, stats)


@lru_cache(maxsize=8)
def _hash_files(files: tuple[Path, ...], stats: tuple[tuple[int, int], ...]) -> str:
    del stats  # A file that changes is hashed again.
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{each.name} {file_sha256(each)}\n" for each in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def code_version(reference: str) -> str:
    """Return the version of the code behind a factory, without importing it.

    Of an installed package its name and version; of modules that no package installs, such as those in the current
    folder, the hash of their source, and of what they import from the same folder.
    """
    adapter = find_adapter(reference)
    if adapter is not None:
        return _package_version(adapter[0].package)
    entry = registered_factories().get(reference)
    if entry is not None and entry.dist is not None:
        return f"{entry.dist.name} {entry.dist.version}"
    module = reference.partition(":")[0]
    packages = _owners().get(module.partition(".")[0], ())
    if packages and not _is_editable(packages[0]):
        return ", ".join(_package_version(package) for package in sorted(set(packages)))
    return f"source {_source_sha256(module)[:12]}"


def _package_version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} absent"


@lru_cache(maxsize=1)
def _owners() -> dict[str, list[str]]:
    return dict(metadata.packages_distributions())


def _is_editable(package: str) -> bool:
    """Return whether a package's code is a working folder, whose files change under one version."""
    text = metadata.distribution(package).read_text("direct_url.json")
    return text is not None and bool(json.loads(text).get("dir_info", {}).get("editable"))


def _source_sha256(module: str) -> str:
    """Hash the source of a module, of the package that it is in, and of the modules beside it that they import."""
    top = importlib.util.find_spec(module.partition(".")[0])
    if top is None or (top.origin is None and not top.submodule_search_locations):
        return hashlib.sha256(b"").hexdigest()
    folders = [Path(each) for each in top.submodule_search_locations or ()]
    files = sorted({each for folder in folders for each in folder.rglob("*.py")}) or [Path(str(top.origin))]
    digest = hashlib.sha256()
    for file in with_neighbours(files[:_MOST_FILES])[:_MOST_FILES]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
