"""The worker: shards in, committed tables out."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.worker.worker import Worker, WorkerSettings

__all__ = ["Worker", "WorkerSettings"]

__getattr__ = attach(
    __name__,
    {
        "worker": ["Worker", "WorkerSettings"],
    },
)
