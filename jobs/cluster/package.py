"""What a job uploads to a cluster: its spec as a file, and this program if the cluster may lack it."""

import importlib.util
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import SpecError, WeightsUnavailableError
from pipeline.job_spec.job import JobSpec
from pipeline.job_spec.model import ModelSection
from pipeline.job_spec.model_reference import FACTORY_WEIGHTS_WORDS, adapter_of, registered_factories
from pipeline.job_spec.parsing import WEIGHTS_WORDS
from pipeline.storage.uris import is_local, local_path

RuntimeEnvKind = Literal["code", "image", "pip"]
SPEC_FILE = "job.yaml"
PACKAGES = ("htc_batch", "htc_model", "pipeline", "jobs")
WEIGHTS_FOLDER = "weights"
# Ray keeps what is uploaded in the head's memory, and refuses more than 512 MiB.
MAX_WEIGHTS_BYTES = 256 * 2**20
# By default Ray kills a job three seconds after asking it to end; a driver that waits for a slow store needs longer to
# write its summary and release its lease.
STOP_WAIT_S = 120
# Never installed into a running cluster: a job must import the Ray that serves it.
_NOT_INSTALLED = ("ray",)


def build_entrypoint(
    spec_file: str,
    *,
    run: str | None = None,
    fresh: bool = False,
    is_installed: bool = True,
    has_json_log: bool = False,
) -> str:
    """Return the shell command line of a job.

    Args:
        spec_file: path of the spec on the cluster.
        run: the run to begin or resume. fresh: begin a new run each time the command is started.
        is_installed: the cluster's image has `htc`; otherwise the job uploads it.
        has_json_log: the job's stdout, which Ray keeps in one file with its log, is JSON too.
    """
    words = ["htc", "run"] if is_installed else ["python", "-m", "jobs.entrypoints.cluster_job", "run"]
    words += ["--spec", spec_file]
    if run:
        words += ["--run", run]
    if fresh:
        words.append("--fresh")
    if has_json_log:
        words.append("--json")
    return shlex.join(words)


def spec_text(spec: JobSpec) -> str:
    """Return a spec as YAML that loads to the same spec elsewhere; keys that are not set keep their default there."""
    # A preset that is not set must stay so: weights files say which network they are for.
    tree = spec.model_dump(mode="json", exclude_unset=True)
    return str(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


@contextmanager
def runtime_env_for(
    spec: JobSpec,
    kind: RuntimeEnvKind,
    env_vars: Mapping[str, str],
    *,
    is_shared: bool = False,
    max_weights_bytes: int = MAX_WEIGHTS_BYTES,
) -> Iterator[dict[str, Any]]:
    """Create the files that Ray uploads, for the block, and yield the job's runtime environment.

    Args:
        kind: see `jobs.cluster.submit.submit_job`.
        env_vars: for the driver and the workers.
        is_shared: all nodes see this machine's paths; otherwise a weights file of this machine is uploaded.
        max_weights_bytes: the largest weights file to upload.

    Raises:
        SpecError: "pip" while htc-batch is not installed as a package; or a weights file is too large.
        WeightsUnavailableError: there is no such file.
    """
    with tempfile.TemporaryDirectory(prefix="htc-submit-") as name:
        root = Path(name)
        working = root / "job"
        working.mkdir()
        if not is_shared:
            spec = _add_weights(spec, working, max_weights_bytes)
            _add_factory(spec, working, max_weights_bytes)
        (working / SPEC_FILE).write_text(spec_text(spec), encoding="utf-8")
        environment: dict[str, Any] = {
            "working_dir": str(working),
            "env_vars": {
                "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
                "RAY_USAGE_STATS_ENABLED": "0",
                **env_vars,
            },
        }
        if kind != "image":
            environment["py_modules"] = [str(_copy_package(each, root)) for each in PACKAGES]
        if kind == "pip":
            environment["pip"] = requirements()
        yield environment


def _add_weights(spec: JobSpec, working: Path, max_bytes: int) -> JobSpec:
    """Copy the weights file of a spec into the job's folder, which every node unpacks at the same path."""
    members = [_add_files(member, working, number, max_bytes) for number, member in enumerate(spec.model.members)]
    return spec.model_copy(update={"model": spec.model.with_members(members)})


def _add_files(section: ModelSection, working: Path, number: int, max_bytes: int) -> ModelSection:
    named = section.weights
    if named in (*WEIGHTS_WORDS, *FACTORY_WEIGHTS_WORDS) or not is_local(named):
        return section
    path = Path(local_path(named))
    is_folder = section.factory is not None and path.is_dir()
    if not path.is_file() and not is_folder:
        raise WeightsUnavailableError(f"There is no weights file {path}.")
    # Of all members together, as they are uploaded together.
    _check_size(path, max_bytes, present=_bytes_of(working / WEIGHTS_FOLDER))
    # Files of several members may have one name, which the tables show.
    place = f"{WEIGHTS_FOLDER}/{number}" if number else WEIGHTS_FOLDER
    (working / place).mkdir(parents=True)
    _copy(path, working / place)
    return section.model_copy(update={"weights": f"{place}/{path.name}"})


def _add_factory(spec: JobSpec, working: Path, max_bytes: int) -> None:
    """Copy the module of a factory that lies in the current folder into the job's folder, where it is found as here."""
    factory = spec.model.factory
    if factory is None or adapter_of(factory) is not None or factory in registered_factories():
        return
    name = factory.partition(":")[0].partition(".")[0]
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is not None and found.origin is not None and not Path(found.origin).is_relative_to(Path.cwd()):
        # Installed; the nodes' installation is checked there, before the run.
        return
    for path in (Path.cwd() / f"{name}.py", Path.cwd() / name):
        if path.exists():
            _check_size(path, max_bytes)
            _copy(path, working)


def _bytes_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 where there is none."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.stat().st_size for each in files)


def _check_size(path: Path, max_bytes: int, *, present: int = 0) -> None:
    if present + _bytes_of(path) > max_bytes:
        raise SpecError(
            f"{path} is larger than the {max_bytes // 2**20} MiB that a job can upload"
            f"{', with the weights before it' if present else ''}; put it into storage that the cluster reaches "
            "(s3://...) and name that, or add --shared-paths if all nodes have this path."
        )


def _copy(path: Path, folder: Path) -> None:
    if path.is_file():
        shutil.copy(path, folder / path.name)
    else:
        shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))


def requirements() -> list[str]:
    """Return the libraries that this program needs, as pip requirements, without Ray, which is the cluster's.

    Raises:
        SpecError: htc-batch is not installed as a package.
    """
    try:
        declared = metadata.requires("htc-batch") or []
    except metadata.PackageNotFoundError:
        raise SpecError(
            "htc-batch is not installed as a package here, so its requirements are unknown; install it with pip, or "
            "use --runtime-env image."
        ) from None
    needed = (line.split(";", 1) for line in declared)
    return [parts[0].strip() for parts in needed if "extra" not in parts[-1] and not _is_clusters_own(parts[0])]


def _is_clusters_own(requirement: str) -> bool:
    return requirement.replace("[", " ").replace(">", " ").replace("=", " ").split()[0] in _NOT_INSTALLED


def _copy_package(name: str, root: Path) -> Path:
    """Copy a package without files that differ between machines: Ray identifies uploads by their content."""
    source = Path(__file__).resolve().parents[2] / name
    return Path(shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*")))
