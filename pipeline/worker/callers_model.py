"""The caller's own `load_model`, pickled for the workers."""

import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.errors import ModelError
from pipeline.models.foreign_code import raised
from pipeline.models.load_function import call_function

if TYPE_CHECKING:
    from pipeline.job_spec.model import ModelSection
    from pipeline.models.protocol import InstanceModel
    from pipeline.worker.fast_path import SegmentationModel
    from pipeline.worker.segmenter import LoadModel


@dataclass(frozen=True)
class CallersModel:
    """The caller's own `load_model`, pickled for the workers.

    pickled: by cloudpickle. folders: the caller's search path, absolute. name: the function's.
    """

    pickled: bytes
    folders: tuple[str, ...]
    name: str = "load_model"

    def __call__(self, section: "ModelSection") -> "SegmentationModel | InstanceModel":
        """Import the caller's code and load the model.

        Raises:
            ModelError: the code cannot be imported here, or raises.
        """
        sys.path.extend(folder for folder in self.folders if folder not in sys.path)
        # Sent by this run's driver, as everything else that Ray unpickles here.
        try:
            load_model = cast("LoadModel", pickle.loads(self.pickled))  # noqa: S301  # nosec B301
        except MemoryError:
            raise
        except Exception as error:  # the boundary of another's modules
            raise ModelError(
                f"load_model ({self.name}) cannot be imported by a worker: {raised(error)}; its module must be where "
                "the program that calls it finds modules, on every node."
            ) from error
        return cast("SegmentationModel | InstanceModel", call_function(load_model, section))


def callers_search_path() -> tuple[str, ...]:
    """Return this process's search path; the empty entry of notebooks and prompts becomes the current folder.

    Names that are no folders, such as the hooks of editable installations, are left out.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        # Ray unpacks a job's files a second time, and the folder in which its driver was started is gone.
        return tuple(folder for folder in sys.path if Path(folder).is_absolute())
    return tuple(str(here / folder) for folder in sys.path if Path(folder).is_absolute() or (here / folder).is_dir())
