"""Session storage: one prefix per session in a local folder or an object store."""

from sandhold.storage.segments import SegmentReader, SegmentWriter, Stream
from sandhold.storage.session import DocumentMissing, SessionStorage, StorageError

__all__ = ["DocumentMissing", "SegmentReader", "SegmentWriter", "SessionStorage", "StorageError", "Stream"]
