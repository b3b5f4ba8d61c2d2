"""File formats: bytes on disk, read within bounds and written atomically; nothing here knows of features or videos."""
