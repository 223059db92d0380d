"""When a request to a store is sent again: how often, how soon, and for how long.

A store that hiccups is asked again soon, one that is away is waited for, and one that never answered is not: the
endpoint may be misspelt, and whoever misspelt it is waiting. However many reads fail at once, this process repeats
its requests no faster than a budget allows, so that a store that comes back is not pushed over again.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.errors import AccessDeniedError, IncompleteReadError, NotFoundError, TransientStorageError

T = TypeVar("T")

ATTEMPTS = 5
# Of a request that fails again and again while the store answers others.
ATTEMPTS_ALONE = 10
# "Forbidden" and "not there" are asked twice more where they surprise: stores say so while they start, and while
# credentials are renewed.
ATTEMPTS_DOUBTED = 3
LONGEST_WAIT_S = 8.0
_FIRST_WAIT_S = 0.25


def retry_local(attempt: Callable[[], T]) -> T:
    """Do something with a local file, again when the file system hiccups, as those across a network do."""
    return Retrying(
        retry=retry_if_exception_type(TransientStorageError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        reraise=True,
    )(attempt)


class RetryBudget:
    """Tokens of which each repeated request takes one, waiting for it where there is none.

    In a quiet hour a burst of `capacity` is free. In the long run a fifth of the requests may be repeated ones,
    and while nothing succeeds at all, `per_s` of them a second find out when the store is back.
    """

    def __init__(self, capacity: float = 50.0, per_success: float = 0.2, per_s: float = 2.0) -> None:
        self._capacity = capacity
        self._per_success = per_success
        self._per_s = per_s
        self._tokens = capacity
        self._filled = time.monotonic()
        self._change = threading.Condition()

    def earn(self) -> None:
        """Count a request that succeeded."""
        with self._change:
            self._tokens = min(self._capacity, self._tokens + self._per_success)
            self._change.notify()

    def take(self) -> None:
        """Take a token, waiting for it."""
        with self._change:
            while True:
                now = time.monotonic()
                self._tokens = min(self._capacity, self._tokens + (now - self._filled) * self._per_s)
                self._filled = now
                if self._tokens >= 1:
                    self._tokens -= 1
                    return
                self._change.wait((1 - self._tokens) / self._per_s)


class StoreHealth:
    """What this process knows of a store: whether it ever answered, when last, and what may be repeated.

    patience_s: how long a store that answered before is waited for.
    has_answered: set beforehand where another process of the same run has talked to it.
    """

    def __init__(self, patience_s: float, *, has_answered: bool = False) -> None:
        self.patience_s = patience_s
        self.has_answered = has_answered
        self.last_success = float("-inf")
        self.budget = RetryBudget()

    def note_success(self) -> None:
        """Count a request that the store granted."""
        self.has_answered = True
        self.last_success = time.monotonic()
        self.budget.earn()

    def call(self, attempt: Callable[[], T], *, is_expected: bool = False) -> T:
        """Make a request, again and again where that may help.

        Waits are drawn evenly between 0 and a bound that doubles each time (full jitter), so that a thousand
        workers that failed together do not come back together.

        Args:
            attempt: raises the errors of `pipeline.errors`.
            is_expected: whether the object was there before, so that "not found" is doubted.

        Raises:
            StorageError: the last attempt's.
        """

        def succeed() -> T:
            result = attempt()
            self.note_success()
            return result

        tries = _RetryPolicy(self, is_expected=is_expected)
        return Retrying(retry=tries.is_worth_another, wait=_wait, sleep=self._sleep, reraise=True)(succeed)

    def _sleep(self, wait_s: float) -> None:
        time.sleep(wait_s)
        self.budget.take()


class _RetryPolicy:
    """The attempts at one request."""

    def __init__(self, health: StoreHealth, *, is_expected: bool) -> None:
        self._health = health
        self._is_expected = is_expected
        self._start = self._last_failure = time.monotonic()
        self._alone = 0

    def is_worth_another(self, state: RetryCallState) -> bool:
        """Tell whether to send the request again; asked after each attempt."""
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, NotFoundError | AccessDeniedError):
            return state.attempt_number < self._attempts_at_refusal(error)
        if isinstance(error, IncompleteReadError):
            # The store is there; what it sends is damaged, now or for good.
            return state.attempt_number < ATTEMPTS_ALONE
        return isinstance(error, TransientStorageError) and self._is_waiting(state.attempt_number)

    def _attempts_at_refusal(self, error: NotFoundError | AccessDeniedError) -> int:
        if isinstance(error, NotFoundError):
            self._health.has_answered = True
            return ATTEMPTS_DOUBTED if self._is_expected else 1
        return ATTEMPTS_DOUBTED if self._health.has_answered else 1

    def _is_waiting(self, attempts: int) -> bool:
        now = time.monotonic()
        # While it serves others, the trouble is this object's, and waiting would only hold up its shard.
        self._alone += self._health.last_success > self._last_failure
        self._last_failure = now
        if attempts < ATTEMPTS:
            return True
        is_within_patience = now - self._start <= self._health.patience_s
        return self._health.has_answered and is_within_patience and self._alone < ATTEMPTS_ALONE


def _wait(state: RetryCallState) -> float:
    return wait_random_exponential(multiplier=_FIRST_WAIT_S, max=LONGEST_WAIT_S)(state)
