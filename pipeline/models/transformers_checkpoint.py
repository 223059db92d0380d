"""Checkpoints of transformers: a local folder, or one of the Hugging Face Hub in this machine's cache.

What a checkpoint is read from: config.json, preprocessor_config.json, and its weights, in one file or several. Nothing
else is fetched, and no code of a checkpoint is run. A checkpoint that is in the cache is used as it is, without asking
the hub, so that all workers of a run, and the run that resumes it, have the same; NAME@REVISION names another.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.text import one_line

PAGE = "docs/models/transformers.md"
CONFIG = "config.json"
# The second is where processors that also have other parts keep theirs.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_FETCHED = (CONFIG, *PROCESSORS, "*.safetensors", "*.safetensors.index.json")
# Pickled tensors, which torch reads without running code; only where there are no others.
_FETCHED_ELSE = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on this machine.

    name: as the user wrote it, or the folder's own name. folder: that holds the files. config: config.json.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """The class that config.json names, "" where it names none."""
        named = self.config.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    def processor_file(self) -> Path | None:
        """Return the file of its image processor."""
        return next((self.folder / name for name in PROCESSORS if (self.folder / name).is_file()), None)

    def weights_files(self) -> list[Path]:
        """Return the files of its weights, and their index; the kind that transformers prefers.

        Raises:
            ModelError: there are none, or one that the index names is missing.
        """
        found = next((self.folder / name for name in WEIGHTS if (self.folder / name).is_file()), None)
        if found is None:
            raise ModelError(f"The checkpoint {self.name} has no weights ({WEIGHTS[0]}) in {self.folder}.")
        if found.suffix != ".json":
            return [found]
        parts = sorted({str(part) for part in _read_json(found, self.name).get("weight_map", {}).values()})
        for part in parts:
            if not (self.folder / part).is_file():
                raise ModelError(f"The checkpoint {self.name} is incomplete: {self.folder} lacks {part}.")
        return [found, *(self.folder / part for part in parts)]

    def settings_files(self) -> list[Path]:
        """Return config.json and the file of its image processor.

        Raises:
            ModelError: there is none.
        """
        processor = self.processor_file()
        if processor is None:
            raise ModelError(
                f"The checkpoint {self.name} has no {PROCESSORS[0]} in {self.folder}, which says how it wants its "
                "images; save it there with the image processor's save_pretrained."
            )
        return [self.folder / CONFIG, processor]

    def files(self) -> list[Path]:
        """Return all files that the model is made from.

        Raises:
            ModelError: one is missing.
        """
        return [*self.settings_files(), *self.weights_files()]


def is_local(name: str) -> bool:
    """Return whether a name is a folder's: one that is there, or one that cannot be the hub's."""
    return name.startswith(("/", "./", "../", "~")) or name in {".", ".."} or Path(name).expanduser().is_dir()


def check_name(name: str) -> None:
    """Check that a name may be a checkpoint's; fetches nothing.

    Raises:
        ModelError: it is empty, no name of the hub, or a folder that is not there or holds no checkpoint.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not name:
        raise ModelError(
            "transformers: needs a checkpoint, a local folder or a name of the Hugging Face Hub, as in "
            "transformers:facebook/mask2former-swin-small-coco-instance."
        )
    if "://" in name:
        raise ModelError(f"transformers:{name} is no checkpoint: copy it to a local folder and name that.")
    if is_local(name):
        _read_local(name)
        return
    try:
        validate_repo_id(name.partition("@")[0])
    except HFValidationError as error:
        raise ModelError(
            f"transformers:{name} is neither a local folder nor a name of the Hugging Face Hub (owner/name)."
        ) from error


def find_checkpoint(name: str) -> Checkpoint:
    """Return a checkpoint, fetching it from the hub unless it is a folder or in the hub's cache on this machine.

    Raises:
        ModelError: it cannot be had; the message says what to do.
    """
    check_name(name)
    if is_local(name):
        return _read_local(name)
    folder = _cached(name)
    if folder is None:
        folder = _fetch(name)
    return Checkpoint(name, folder, _read_json(folder / CONFIG, name))


def is_here(name: str) -> bool:
    """Return whether a checkpoint's files are on this machine; fetches nothing.

    Raises:
        ModelError: see `check_name`.
    """
    check_name(name)
    return is_local(name) or _cached(name) is not None


def _read_local(name: str) -> Checkpoint:
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}, which transformers:{name} names.")
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} is no checkpoint of transformers: it has no {CONFIG}; save_pretrained writes one.")
    return Checkpoint(folder.name, folder, _read_json(folder / CONFIG, folder.name))


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The checkpoint {name} cannot be read: {path}: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise ModelError(f"The checkpoint {name} cannot be read: {path} holds no keys and values.")
    return values


def _cached(name: str) -> Path | None:
    """Return the folder of a checkpoint that is in the cache with all of its files."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    for patterns in (_FETCHED, (*_FETCHED, *_FETCHED_ELSE)):
        try:
            folder = Path(
                snapshot_download(
                    repository, revision=revision or None, allow_patterns=list(patterns), local_files_only=True
                )
            )
            # The cache may hold a part of it, of another program.
            Checkpoint(name, folder, _read_json(folder / CONFIG, name)).files()
        except (LocalEntryNotFoundError, ModelError):
            continue
        return folder
    return None


def _fetch(name: str) -> Path:
    """Fetch a checkpoint into the hub's cache.

    Raises:
        ModelError: the hub cannot be reached, does not have it, or does not give it to us.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")

    def fetch(patterns: Sequence[str]) -> Path:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))

    try:
        folder = fetch(_FETCHED)
        if not any((folder / each).is_file() for each in WEIGHTS):
            folder = fetch((*_FETCHED, *_FETCHED_ELSE))
    except GatedRepoError as error:
        raise ModelError(
            f"The Hugging Face Hub gives {repository} only to those who accepted its terms: accept them at "
            f"https://huggingface.co/{repository}, and set HF_TOKEN to your token."
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"The Hugging Face Hub has no {repository} (or it is private: set HF_TOKEN to your token); correct the "
            "name, or name a local folder."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{repository} on the Hugging Face Hub has no revision {revision}; correct it.") from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        cause = error.__cause__ or error
        is_offline = isinstance(cause, OfflineModeIsEnabled)
        raise ModelError(
            _not_reached(repository, "HF_HUB_OFFLINE is set" if is_offline else one_line(cause))
        ) from error
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{repository} on the Hugging Face Hub is no checkpoint of transformers: it has no {CONFIG}.")
    return folder


def _not_reached(repository: str, reason: str) -> str:
    return (
        f"{repository} is not in this machine's cache, and cannot be fetched from the Hugging Face Hub: {reason}; "
        f"fetch it where there is a network (hf download {repository}) and name its folder, see {PAGE}."
    )
