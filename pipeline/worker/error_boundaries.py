"""Error boundaries around one image and one shard's attempt: every exception becomes a value.

Everything inside may raise freely. At the first boundary an exception becomes the image's row, at the second a
`ShardFailure` for the driver. Both log the traceback of an unforeseen exception, so that no bug is silent. The only
other place that catches every exception is `pipeline.cluster.connection.cluster_boundary`.
"""

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import (
    ImageError,
    NotFoundError,
    StorageError,
    UnsupportedSchemeError,
    WebHostError,
)
from pipeline.messages import ImageFailure, PartialResult, ShardFailure, ShardResult
from pipeline.text import one_line
from pipeline.worker.byte_budget import LaneClosedError
from pipeline.worker.commit_claim import AbandonedError, OrphanedError

T = TypeVar("T")
Report = ShardResult | PartialResult
log = logging.getLogger(__name__)


class DeviceLostError(Exception):
    """The accelerator's context is broken for good: passes the boundaries, because only a new process helps."""


class MemberLostError(DeviceLostError):
    """The process of an ensemble's member is gone: its worker ends as well, and a new one takes over."""


class CommitError(Exception):
    """A shard's tables could not be written; the cause says why."""


def image_boundary(uri: str, step: Callable[[], T], *, is_last_attempt: bool = False) -> T | ImageFailure:
    """Run one step of one image; an exception becomes this image's failure, and other images are not affected.

    Raises:
        StorageError: storage failed for a reason that is not the image's, and another attempt is left. On the last
            attempt only this image fails.
    """
    try:
        return step()
    except (DeviceLostError, LaneClosedError):
        raise
    except ImageError as error:
        return ImageFailure(uri, error.status, error.reason)
    except NotFoundError as error:
        return ImageFailure(uri, "missing", one_line(error))
    except (WebHostError, UnsupportedSchemeError) as error:
        return ImageFailure(uri, "failed", one_line(error))
    except StorageError as error:
        if not is_last_attempt:
            raise
        return ImageFailure(uri, "failed", one_line(error))
    except Exception as error:  # the boundary of one image
        log.exception("image %s failed", uri)
        return ImageFailure(uri, "failed", one_line(error), traceback.format_exc())


def shard_boundary(index: int, attempt: Callable[[], Report]) -> Report | ShardFailure:
    """Run one shard's attempt; an exception becomes a `ShardFailure`."""
    try:
        return attempt()
    except DeviceLostError:
        raise
    except AbandonedError:
        return ShardFailure(index, "abandoned", "another attempt commits the shard", is_charged=False)
    except OrphanedError:
        return ShardFailure(index, "orphaned", "the driver sent no heartbeat for too long to commit the shard")
    except CommitError as error:
        log.exception("shard %d was not committed", index)
        return ShardFailure(index, "commit", one_line(error.__cause__ or error))
    except StorageError as error:
        return ShardFailure(index, "storage", one_line(error))
    except Exception as error:  # the boundary of one shard
        log.exception("shard %d failed", index)
        return ShardFailure(index, "bug", one_line(error), traceback.format_exc())
