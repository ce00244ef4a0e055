"""Session storage: one prefix per session in a local folder or an object store."""

from sandhold.storage.errors import DocumentMissing, StorageError, StorageFault
from sandhold.storage.files import FileStore, Progress, Quota
from sandhold.storage.quota import QuotaExceeded
from sandhold.storage.segments import OutputWindow, SegmentReader, SegmentWriter, Stream
from sandhold.storage.session import SessionStorage

__all__ = [
    "DocumentMissing",
    "FileStore",
    "OutputWindow",
    "Progress",
    "Quota",
    "QuotaExceeded",
    "SegmentReader",
    "SegmentWriter",
    "SessionStorage",
    "StorageError",
    "StorageFault",
    "Stream",
]
