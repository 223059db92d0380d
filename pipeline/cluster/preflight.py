"""A first look from the nodes where workers will be, before any of them is started: what the laptop and the head can
reach, they may not.

Each node lists the input and reads one of its first images, writes into the output and removes it again, and looks
for the weights. The run begins only when all of them could.
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
from pipeline.cluster.node_calls import call_on_nodes
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
from pipeline.runs.outcomes import EXIT_USAGE
from pipeline.storage.storage import Storage
from pipeline.storage.uris import is_local, join, local_path
from pipeline.weights.cache import weights_here

# Some images may be forbidden, each a row; when all of the first are, all are.
MAX_READ = 8
# Hidden: no listing of ours takes it for an image or for somebody else's file.
MARK = ".htc-first-look-"


@dataclass(frozen=True)
class PreflightResult:
    """What a node saw: nothing wrong, or one sentence and the exit code that a run would end with for it."""

    problem: str = ""
    exit_code: int = 0


class PreflightError(RunError):
    """The nodes of the cluster cannot do the run; nothing has been started."""


Ask = Callable[..., Mapping[str, PreflightResult]]


def check_nodes(spec: JobSpec, *, tell: Callable[[str], None], ask: Ask = call_on_nodes) -> None:
    """Look at input, output and weights from the cluster's nodes; this process must be connected to it.

    Args:
        tell: is told when it takes long.
        ask: calls a function on each node, see `node_calls.call_on_nodes`.

    Raises:
        PreflightError: one of the nodes cannot do without; the message names it.
        StorageError: the output cannot be written from here.
    """
    with _mark_in_output(spec) as mark:
        sights = ask(look, spec, mark, tell=tell)
    for node, sight in sorted(sights.items()):
        if sight.problem:
            error = PreflightError(f"On the cluster's node {node}: {sight.problem}{_shared_advice(spec, sight)}")
            error.exit_code = sight.exit_code
            raise error


@contextmanager
def _mark_in_output(spec: JobSpec) -> Iterator[str]:
    storage = Storage(spec.storage)
    is_new = not storage.exists(spec.output.uri)
    mark = join(spec.output.uri, f"{MARK}{secrets.token_hex(8)}")
    storage.write(mark, b"htc")
    try:
        yield mark
    finally:
        with suppress(StorageError):
            storage.delete(mark)
        if is_new and is_local(spec.output.uri):
            with suppress(OSError):
                Path(local_path(spec.output.uri)).rmdir()


def look(spec: JobSpec, mark: str) -> PreflightResult:
    """Try what a worker will do, in the process of a node.

    Args:
        mark: a file that the driver has written into the output.
    """
    if importlib.util.find_spec("torch") is None:
        return PreflightResult("torch is not installed, which the workers need.", EXIT_USAGE)
    storage = Storage(spec.storage)
    try:
        _look_at_input(spec, storage)
        _look_at_output(spec, storage, mark)
        _look_at_weights(spec, storage)
    except HtcError as error:
        return PreflightResult(str(error), error.exit_code)
    return PreflightResult()


def _look_at_input(spec: JobSpec, storage: Storage) -> None:
    try:
        first = list(islice(list_images(spec.input, storage, exclude=[spec.output.uri]), MAX_READ))
    except StorageError as error:
        raise InputError(f"the input cannot be listed: {error}") from error
    refusal: StorageError | None = None
    for ref in first:
        try:
            read_image(ref, storage, max_bytes=spec.images.max_bytes)
        except (ImageError, NotFoundError, UnsupportedSchemeError):
            # One image's own trouble becomes its row.
            return
        except StorageError as error:
            refusal = error
        else:
            return
    # Whether it is wrong that there is no image, planning decides.
    if refusal is not None:
        raise InputError(f"the input is listed but cannot be read: {refusal}") from refusal


def _look_at_output(spec: JobSpec, storage: Storage, mark: str) -> None:
    own = f"{mark}-{os.getpid()}"
    try:
        storage.read(mark)
    except NotFoundError:
        raise StorageError(f"the output {spec.output.uri} is another folder here than where the driver runs.") from None
    storage.write(own, b"htc")
    storage.delete(own)


def _look_at_weights(spec: JobSpec, storage: Storage) -> None:
    section = spec.model
    here = weights_here(section)
    if here is not None and not here.is_file():
        raise WeightsUnavailableError(f"there is no weights file {here}.")
    if here is not None or section.weights == "untrained":
        return
    with suppress(UnknownWeightsError):
        uri = find(section.preset).url if section.weights == "coco" else section.weights
        try:
            if uri is not None:
                storage.stat(uri)
        except StorageError as error:
            raise WeightsUnavailableError(f"the weights cannot be reached: {error}") from error


def _shared_advice(spec: JobSpec, sight: PreflightResult) -> str:
    names = [place for place in (spec.input.uri, spec.output.uri, spec.model.weights) if is_local(place)]
    if any(name in sight.problem for name in names):
        return " A local path must be the same on all nodes of a cluster: use shared storage (s3://...) or a mount."
    return ""
