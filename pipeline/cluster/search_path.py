"""Where workers import from: this program's own folder, never the folder in which a command was given.

Ray puts the driver's current folder and its script's folder first on its workers' search path, so that a `pipeline.py`,
`torch.py` or `types.py` that lies there by chance is imported instead of what was meant. Only code that the caller of
`pipeline.driver.run.run` hands over (`load_model`) is looked for there, and behind everything else.
"""

import pickle
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pipeline.job_spec.job import ModelSection
    from pipeline.worker.segmenter import LoadModel, SegmentationModel

_SITE_FOLDERS = ("purelib", "platlib")


def worker_search_path() -> list[str]:
    """The folders that workers search first: this program's own, where it is not installed as a package."""
    root = Path(__file__).resolve().parents[2]
    site = {Path(sysconfig.get_path(name)).resolve() for name in _SITE_FOLDERS}
    # Packages are found there anyway, and first on the path they would hide the standard library's modules.
    return [] if root in site else [str(root)]


@dataclass(frozen=True)
class CallersModel:
    """A `load_model` of the caller's own, on its way to the workers.

    pickled: by cloudpickle. folders: the caller's search path, absolute.
    """

    pickled: bytes
    folders: tuple[str, ...]

    def __call__(self, section: "ModelSection") -> "SegmentationModel":
        """Import the caller's code and load the model."""
        sys.path.extend(folder for folder in self.folders if folder not in sys.path)
        # What this run's driver has sent, as everything else that Ray unpickles here.
        load_model = cast("LoadModel", pickle.loads(self.pickled))  # noqa: S301  # nosec B301
        return load_model(section)


def callers_search_path() -> tuple[str, ...]:
    """This process's search path; the empty entry of notebooks and prompts is the current folder."""
    return tuple(str(Path(folder or ".").absolute()) for folder in sys.path)
