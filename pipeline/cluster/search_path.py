"""Where workers import from: this program's own folder, never the folder in which a command was given.

Ray puts the driver's current folder and its script's folder first on its workers' search path, so that a `pipeline.py`,
`torch.py` or `types.py` that lies there by chance is imported instead of what was meant. Only code that the caller of
`pipeline.driver.run_job.run` hands over (`load_model`) is looked for there, and behind everything else.
"""

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

_SITE_FOLDERS = ("purelib", "platlib")


def worker_search_path() -> list[str]:
    """The folders that workers search first: this program's own, where it is not installed as a package."""
    root = Path(__file__).resolve().parents[2]
    site = {Path(sysconfig.get_path(name)).resolve() for name in _SITE_FOLDERS}
    # Packages are found there anyway, and first on the path they would hide the standard library's modules.
    return [] if root in site else [str(root)]
