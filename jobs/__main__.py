"""`python -m jobs` is `htc`."""

from jobs.cli import main

main()
