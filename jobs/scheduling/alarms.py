"""The name that release 0.1.0 wrote into the job store of its alarms, `jobs.scheduling.alarms:ring`.

Kept for one release. The scheduler needs no alarm: it checks once a second what is due.
"""


def ring() -> None:
    """Do nothing."""
