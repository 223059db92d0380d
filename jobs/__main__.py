"""`python -m jobs` is `htc`."""

import os
import sys

# `python -m` puts the current folder first on the search path, where the user may have a `pipeline.py` or `numpy.py`.
# The folder stays if this program is in it; with `python -P` it is not on the path at all.
if not sys.flags.safe_path and sys.path:
    # Not pathlib, which imports many modules, and from that very folder.
    _root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    if os.path.realpath(sys.path[0]) != _root:
        del sys.path[0]

from jobs.cli.program import main

main()
