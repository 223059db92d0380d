"""`python -m jobs` is `htc`."""

import os
import sys

# `python -m` puts the current folder first on the search path, where a `pipeline.py` or `numpy.py` of the user's may
# lie. It stays when this program itself lies there; with `python -P` it is not there in the first place.
if not sys.flags.safe_path and sys.path:
    # Not pathlib, which imports much, and from that very folder.
    _root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    if os.path.realpath(sys.path[0]) != _root:
        del sys.path[0]

from jobs.cli.program import main

main()
