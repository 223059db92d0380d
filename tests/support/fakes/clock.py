"""A clock for tests, which moves when told."""


class HandClock:
    """Seconds since nothing in particular."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
