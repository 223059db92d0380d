"""A clock for tests that moves when its test sets it."""


class HandClock:
    """Seconds since an arbitrary moment."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
