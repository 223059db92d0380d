"""Local files and object stores: list, read, write atomically."""

from typing import TYPE_CHECKING

from htc_model.lazy_exports import attach

if TYPE_CHECKING:
    from pipeline.storage.cas_file import CasFile
    from pipeline.storage.config import StorageSection, Uri
    from pipeline.storage.objects import ObjectData, ObjectInfo
    from pipeline.storage.storage import Storage
    from pipeline.storage.uris import is_local, join, local_path

__all__ = ["CasFile", "ObjectData", "ObjectInfo", "Storage", "StorageSection", "Uri", "is_local", "join", "local_path"]

__getattr__ = attach(
    __name__,
    {
        "cas_file": ["CasFile"],
        "config": ["StorageSection", "Uri"],
        "objects": ["ObjectData", "ObjectInfo"],
        "storage": ["Storage"],
        "uris": ["is_local", "join", "local_path"],
    },
)
