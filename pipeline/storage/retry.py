"""Retries of requests to a store: how often, how soon, and for how long.

A transient failure is retried soon. A store that answered before and is unreachable now is retried for `patience_s`. A
store that never answered is not: its endpoint may be misspelt, and the user is waiting. However many reads fail at
once, a budget bounds the rate of retries of this process, so that a store that recovers is not overloaded again.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.errors import AccessDeniedError, IncompleteReadError, NotFoundError, TransientStorageError
from pipeline.logs import log_event

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 5
# For a request that keeps failing while the store answers others.
ATTEMPTS_ALONE = 10
# "Forbidden" and "not found" are retried twice where they contradict what is known: stores answer so while they start,
# and while credentials are renewed.
ATTEMPTS_DOUBTED = 3
LONGEST_WAIT_S = 8.0
LOG_EVERY_S = 10.0
_FIRST_WAIT_S = 0.25


def retry_local(attempt: Callable[[], T]) -> T:
    """Run an operation on a local file, with retries of transient errors such as network file systems have."""
    return Retrying(
        retry=retry_if_exception_type(TransientStorageError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=_wait,
        reraise=True,
    )(attempt)


class RetryBudget:
    """A token bucket: each retry takes a token, and waits while there is none.

    A burst of `capacity` retries is free. In the long run a fifth of the requests may be retries (`per_success`), and
    while no request succeeds, `per_s` retries a second find out when the store is back.
    """

    def __init__(self, capacity: float = 50.0, per_success: float = 0.2, per_s: float = 2.0) -> None:
        self._capacity = capacity
        self._per_success = per_success
        self._per_s = per_s
        self._tokens = capacity
        self._filled = time.monotonic()
        self._change = threading.Condition()

    def earn(self) -> None:
        """Record a request that succeeded."""
        with self._change:
            self._tokens = min(self._capacity, self._tokens + self._per_success)
            self._change.notify()

    def take(self) -> None:
        """Take a token; wait while there is none."""
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
    """State of a store in this process: whether it ever answered, when last, and its retry budget.

    patience_s: for how long requests are retried while a store that answered before is unreachable.
    has_answered: true from the beginning where another process of the run has used the store.
    """

    def __init__(self, patience_s: float, *, has_answered: bool = False) -> None:
        self.patience_s = patience_s
        self.has_answered = has_answered
        self.last_success = float("-inf")
        self.budget = RetryBudget()
        self._retries = 0
        self._logged = float("-inf")

    def record_success(self) -> None:
        """Record a request that the store granted."""
        self.has_answered = True
        self.last_success = time.monotonic()
        self.budget.earn()

    def call(self, attempt: Callable[[], T], *, is_expected: bool = False) -> T:
        """Make a request, with retries where they may help.

        Waits are uniformly random between 0 and a bound that doubles each time (full jitter), so that a thousand
        workers that failed together do not retry together.

        Args:
            attempt: raises the errors of `pipeline.errors`.
            is_expected: whether the object existed before, so that "not found" is retried too.

        Raises:
            StorageError: the error of the last attempt.
        """

        def succeed() -> T:
            result = attempt()
            self.record_success()
            return result

        policy = _RetryPolicy(self, is_expected=is_expected)
        return Retrying(
            retry=policy.should_retry, wait=_wait, sleep=self._sleep, before_sleep=self._log_retry, reraise=True
        )(succeed)

    def _log_retry(self, state: RetryCallState) -> None:
        """Log that requests are retried, at most once in `LOG_EVERY_S` for all of them."""
        self._retries += 1
        now = time.monotonic()
        if now - self._logged < LOG_EVERY_S:
            return
        retries, self._retries, self._logged = self._retries, 0, now
        error = state.outcome.exception() if state.outcome is not None else None
        values: dict[str, Any] = {"attempt": state.attempt_number, "retries": retries, "reason": type(error).__name__}
        log_event(log, "store_retry", f"A request to a store is retried: {error}", **values)

    def _sleep(self, wait_s: float) -> None:
        time.sleep(wait_s)
        self.budget.take()


class _RetryPolicy:
    """Whether to retry one request."""

    def __init__(self, health: StoreHealth, *, is_expected: bool) -> None:
        self._health = health
        self._is_expected = is_expected
        self._start = self._last_failure = time.monotonic()
        self._alone = 0

    def should_retry(self, state: RetryCallState) -> bool:
        """Return whether to send the request again; called after each attempt."""
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, NotFoundError | AccessDeniedError):
            return state.attempt_number < self._attempts_at_refusal(error)
        if isinstance(error, IncompleteReadError):
            # The store is available; what it sends is damaged, for now or permanently.
            return state.attempt_number < ATTEMPTS_ALONE
        return isinstance(error, TransientStorageError) and self._has_time_left(state.attempt_number)

    def _attempts_at_refusal(self, error: NotFoundError | AccessDeniedError) -> int:
        if isinstance(error, NotFoundError):
            self._health.has_answered = True
            return ATTEMPTS_DOUBTED if self._is_expected else 1
        return ATTEMPTS_DOUBTED if self._health.has_answered else 1

    def _has_time_left(self, attempts: int) -> bool:
        now = time.monotonic()
        # While the store serves other requests, the problem is this object's, and waiting would only delay its shard.
        self._alone += self._health.last_success > self._last_failure
        self._last_failure = now
        if attempts < ATTEMPTS:
            return True
        is_within_patience = now - self._start <= self._health.patience_s
        return self._health.has_answered and is_within_patience and self._alone < ATTEMPTS_ALONE


def _wait(state: RetryCallState) -> float:
    return wait_random_exponential(multiplier=_FIRST_WAIT_S, max=LONGEST_WAIT_S)(state)
