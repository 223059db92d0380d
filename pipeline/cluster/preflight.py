"""Preflight check on the nodes where workers will run: they may not reach what the laptop and the head can reach.

Each node lists the input and reads one of its first images, writes a file into the output and deletes it, and checks
that the weights are available. The run begins only when all of them succeed.
"""

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from htc_model.weights.model_zoo import UnknownWeightsError, find
from pipeline.cluster.node_calls import run_on_nodes
from pipeline.errors import (
    HtcError,
    ImageError,
    InputError,
    NotFoundError,
    RunError,
    StorageError,
    UnsupportedSchemeError,
    WeightsUnavailableError,
)
from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.model import ModelSection
from pipeline.models.factory import find_factory, search_path
from pipeline.runs.outcomes import EXIT_USAGE
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path
from pipeline.weights.cache import weights_here

# Some images may be forbidden, and each becomes a row; when all of the first are, the input is.
MAX_READ = 8
# Hidden, so that no listing takes it for an image or for another program's file.
MARKER = ".htc-first-look-"


@dataclass(frozen=True)
class PreflightResult:
    """The result of one node: no problem, or one sentence and the exit code with which the run would end."""

    problem: str = ""
    exit_code: int = 0


class PreflightError(RunError):
    """The nodes of the cluster cannot do the run; no worker was started."""


RunOnNodes = Callable[..., Mapping[str, PreflightResult]]


def check_nodes(spec: JobSpec, *, notify: Callable[[str], None], run_on_nodes: RunOnNodes = run_on_nodes) -> None:
    """Check input, output and weights from the cluster's nodes; this process must be connected to it.

    Args:
        notify: called with a sentence when it takes long.
        run_on_nodes: runs a function on each node, see `node_calls.run_on_nodes`.

    Raises:
        PreflightError: one of the nodes found a problem; the message names it.
        StorageError: the output cannot be written from here.
    """
    with _marker_in_output(spec) as marker:
        # Of the presets nothing is searched.
        folders = () if spec.model.factory is None else search_path()
        results = run_on_nodes(check_node, spec, marker, *([folders] if folders else []), notify=notify)
    for node, result in sorted(results.items()):
        if result.problem:
            error = PreflightError(f"On the cluster's node {node}: {result.problem}{_shared_advice(spec, result)}")
            error.exit_code = result.exit_code
            raise error


@contextmanager
def _marker_in_output(spec: JobSpec) -> Iterator[str]:
    """Write a file into the output for the time of the block; yield its URI."""
    storage = Storage(spec.storage)
    is_new = not storage.exists(spec.output.uri)
    marker = join(spec.output.uri, f"{MARKER}{secrets.token_hex(8)}")
    storage.write(marker, b"htc")
    try:
        yield marker
    finally:
        with suppress(StorageError):
            storage.delete(marker)
        if is_new and is_local(spec.output.uri):
            with suppress(OSError):
                Path(local_path(spec.output.uri)).rmdir()


def check_node(spec: JobSpec, marker: str, folders: tuple[str, ...] = ()) -> PreflightResult:
    """Check in a node's process what its workers will do.

    Args:
        marker: a file that the driver has written into the output.
        folders: where the factory of a model of one's own is searched, see `pipeline.models.factory`.
    """
    if importlib.util.find_spec("torch") is None:
        return PreflightResult("torch is not installed, which the workers need.", EXIT_USAGE)
    storage = Storage(spec.storage)
    try:
        _check_input(spec, storage)
        _check_output(spec, storage, marker)
        _check_weights(spec, storage)
        _check_factory(spec, folders)
    except HtcError as error:
        return PreflightResult(str(error), error.exit_code)
    return PreflightResult()


def _check_input(spec: JobSpec, storage: Storage) -> None:
    try:
        first = list(islice(list_images(spec.input, storage, exclude=[spec.output.uri]), MAX_READ))
    except StorageError as error:
        raise InputError(f"the input cannot be listed: {error}") from error
    refusal: StorageError | None = None
    for ref in first:
        try:
            read_image(ref, storage, max_bytes=spec.images.max_bytes)
        except (ImageError, NotFoundError, UnsupportedSchemeError):
            # An error of one image becomes its row.
            return
        except StorageError as error:
            refusal = error
        else:
            return
    # Planning decides whether an input without images is an error.
    if refusal is not None:
        raise InputError(f"the input is listed but cannot be read: {refusal}") from refusal


def _check_output(spec: JobSpec, storage: Storage, marker: str) -> None:
    own = f"{marker}-{os.getpid()}"
    try:
        storage.read(marker)
    except NotFoundError:
        raise StorageError(f"the output {spec.output.uri} is another folder here than where the driver runs.") from None
    storage.write(own, b"htc")
    storage.delete(own)


def _check_weights(spec: JobSpec, storage: Storage) -> None:
    for member in spec.model.members:
        _check_weights_of(member, storage)


def _check_weights_of(section: ModelSection, storage: Storage) -> None:
    here = weights_here(section)
    if here is not None and not (here.is_file() or (section.factory is not None and here.is_dir())):
        raise WeightsUnavailableError(f"there is no weights file {here}.")
    if here is not None or section.weights in {"untrained", "default"}:
        return
    with suppress(UnknownWeightsError):
        uri = find(section.preset).url if section.weights == "coco" else section.weights
        try:
            if uri is not None:
                storage.stat(uri)
        except StorageError as error:
            raise WeightsUnavailableError(f"the weights cannot be reached: {error}") from error


def _check_factory(spec: JobSpec, folders: tuple[str, ...]) -> None:
    if spec.model.factory is not None:
        find_factory(spec.model.factory, folders)


def _shared_advice(spec: JobSpec, result: PreflightResult) -> str:
    weights = [member.weights for member in spec.model.members]
    names = [place for place in (spec.input.uri, spec.output.uri, *weights) if is_local(place)]
    if any(name in result.problem for name in names):
        return " A local path must be the same on all nodes of a cluster: use shared storage (s3://...) or a mount."
    return ""
