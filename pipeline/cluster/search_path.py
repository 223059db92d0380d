"""The import path of workers: this program's own folder, never the current folder of the command.

Ray puts the driver's current folder and its script's folder first on its workers' search path, so that a `pipeline.py`,
`torch.py` or `types.py` that happens to be there hides the real module. Only the caller's own `load_model`
(`pipeline.driver.run_job.run`) is searched there, after everything else.
"""

import sysconfig
from pathlib import Path

_SITE_FOLDERS = ("purelib", "platlib")


def worker_search_path() -> list[str]:
    """Return the folders that workers search first: this program's own, unless it is installed as a package."""
    root = Path(__file__).resolve().parents[2]
    site = {Path(sysconfig.get_path(name)).resolve() for name in _SITE_FOLDERS}
    # Installed packages are found anyway, and first on the path they would hide the standard library's modules.
    return [] if root in site else [str(root)]
