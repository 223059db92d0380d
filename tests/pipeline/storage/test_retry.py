"""Retries: where they may help, for how long, and within the budget."""

import threading
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import (
    AccessDeniedError,
    IncompleteReadError,
    NotFoundError,
    SlowDownError,
    StorageError,
    TransientStorageError,
)
from pipeline.storage import retry as retrying
from pipeline.storage.retry import ATTEMPTS, ATTEMPTS_ALONE, ATTEMPTS_DOUBTED, RetryBudget, StoreHealth, retry_local


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.0)


class Failing:
    """A request that raises the errors it is given, one after another, and then succeeds."""

    def __init__(self, errors: Iterator[StorageError]) -> None:
        self.errors = errors
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        for error in self.errors:
            raise error
        return "answer"


def always(error: StorageError) -> Failing:
    return Failing(iter(lambda: error, None))


def times(count: int, error: StorageError) -> Failing:
    return Failing(iter([error] * count))


def calls_until_error(request: Failing, call: Callable[[Callable[[], str]], str]) -> int:
    with pytest.raises(StorageError):
        call(request)
    return request.calls


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (TransientStorageError("503"), ATTEMPTS),
        (SlowDownError("503"), ATTEMPTS),
        (IncompleteReadError("half"), ATTEMPTS_ALONE),
        (NotFoundError("404"), 1),
        (AccessDeniedError("403"), 1),
        (StorageError("disk full"), 1),
    ],
)
def test_a_store_that_never_answered_is_retried_briefly(error: StorageError, attempts: int) -> None:
    assert calls_until_error(always(error), StoreHealth(patience_s=3600).call) == attempts


def test_a_store_that_answered_before_is_retried_for_its_patience() -> None:
    health = StoreHealth(patience_s=3600)
    health.record_success()
    request = times(30, TransientStorageError("connection refused"))
    assert health.call(request) == "answer"
    assert request.calls == 31


def test_so_is_a_store_that_answered_another_process() -> None:
    request = times(30, TransientStorageError("connection refused"))
    assert StoreHealth(patience_s=3600, has_answered=True).call(request) == "answer"


def test_patience_ends() -> None:
    health = StoreHealth(patience_s=0, has_answered=True)
    assert calls_until_error(always(TransientStorageError("connection refused")), health.call) == ATTEMPTS


def test_one_object_that_fails_while_others_do_not_is_given_up() -> None:
    health = StoreHealth(patience_s=3600, has_answered=True)

    class Unlucky(Failing):
        def __call__(self) -> str:
            health.record_success()
            return super().__call__()

    assert calls_until_error(Unlucky(iter(lambda: TransientStorageError("500"), None)), health.call) == ATTEMPTS_ALONE


def test_a_refusal_is_retried_after_the_store_granted_a_request() -> None:
    health = StoreHealth(patience_s=3600, has_answered=True)
    assert health.call(times(ATTEMPTS_DOUBTED - 1, AccessDeniedError("403"))) == "answer"
    assert calls_until_error(always(AccessDeniedError("403")), health.call) == ATTEMPTS_DOUBTED


def test_not_found_is_retried_only_for_an_object_that_existed() -> None:
    health = StoreHealth(patience_s=3600)
    assert calls_until_error(always(NotFoundError("404")), health.call) == 1
    assert health.has_answered

    def expected(request: Callable[[], str]) -> str:
        return health.call(request, is_expected=True)

    assert calls_until_error(always(NotFoundError("404")), expected) == ATTEMPTS_DOUBTED
    assert expected(times(1, NotFoundError("404"))) == "answer"


def test_bugs_of_the_program_are_raised_at_once() -> None:
    def broken() -> str:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        StoreHealth(patience_s=3600, has_answered=True).call(broken)


def test_transient_local_errors_are_retried_and_nothing_else() -> None:
    assert retry_local(times(ATTEMPTS - 1, TransientStorageError("stale handle"))) == "answer"
    assert calls_until_error(always(TransientStorageError("stale handle")), retry_local) == ATTEMPTS
    assert calls_until_error(always(AccessDeniedError("no")), retry_local) == 1


def test_repeated_requests_wait_for_the_budget() -> None:
    budget = RetryBudget(capacity=2, per_success=0.5, per_s=1e-6)
    taken = threading.Semaphore(0)

    def take() -> None:
        for _ in range(4):
            budget.take()
            taken.release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert taken.acquire(timeout=60)
    assert taken.acquire(timeout=60)
    # The burst is spent; a quarter of a second is long enough for a third that should not come.
    assert not taken.acquire(timeout=0.25)
    budget.earn()
    assert not taken.acquire(timeout=0.25)
    budget.earn()
    assert taken.acquire(timeout=60)
    for _ in range(3):
        budget.earn()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_store_that_is_down_gets_few_retries() -> None:
    health = StoreHealth(patience_s=0, has_answered=True)
    health.budget = RetryBudget(capacity=10, per_success=0.2, per_s=1e-6)
    sent = threading.Semaphore(0)

    def request() -> str:
        sent.release()
        raise TransientStorageError("connection refused")

    def read() -> None:
        with pytest.raises(TransientStorageError):
            health.call(request)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    # Eight first requests and ten repeated ones, where each of eight could have made five.
    for _ in range(8 + 10):
        assert sent.acquire(timeout=60)
    assert not sent.acquire(timeout=0.25)
    for thread in threads:
        while thread.is_alive():
            health.budget.earn()
            thread.join(timeout=0.001)
