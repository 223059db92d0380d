"""A commit claim is taken or abandoned, never both."""

import pytest

from pipeline.worker.commit_claim import AbandonedError, CommitClaim


def test_what_was_abandoned_cannot_be_taken() -> None:
    claim = CommitClaim()
    claim.check()
    assert claim.abandon()
    with pytest.raises(AbandonedError):
        claim.check()
    with pytest.raises(AbandonedError):
        claim.take()


def test_what_was_taken_cannot_be_abandoned() -> None:
    claim = CommitClaim()
    claim.take()
    assert not claim.abandon()
    claim.check()
