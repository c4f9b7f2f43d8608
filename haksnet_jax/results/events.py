"""TensorBoard's event files, on a disk or in a bucket."""

import io
import os
from typing import Any

from haksnet_jax import files


class _BucketWriter:
    """An event file in a bucket, where nothing is appended: each flush uploads all of it."""

    def __init__(self, path):
        self._path = path
        self._content = io.BytesIO()

    def write(self, data):
        self._content.write(data)

    def flush(self):
        files.write_bytes(self._path, self._content.getvalue())

    def close(self):
        self.flush()


class _Buckets:
    """What tensorboardX asks for, for each kind of path."""

    def open(self, path):
        return _BucketWriter(path)

    def directory_check(self, path):
        """Nothing: a bucket has no folders to be made."""


def event_writer(folder: str | os.PathLike[str]) -> Any:
    """A tensorboardX.SummaryWriter. Args: folder, a path; made if it does not exist."""
    import tensorboardX  # (only the writing host needs it)
    from tensorboardX.record_writer import register_writer_factory

    if files.is_bucket(folder):
        # tensorboardX's own writer for buckets wants another library than the one that all else goes through.
        register_writer_factory("gs", _Buckets())
    return tensorboardX.SummaryWriter(str(folder))
