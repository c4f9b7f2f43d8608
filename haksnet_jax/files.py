"""Files that appear whole or not at all, on disks and in buckets.

On a disk, the content is written beside the file, forced to the disk and renamed. A bucket (`gs://...`) has no renaming
that happens at once, but there an object appears with its whole content when its upload ends, and needs none.
"""

import contextlib
import datetime
import errno
import fcntl
import math
import os
import pathlib
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

import fsspec
from etils import epath

from haksnet_jax.errors import UserError

LOCK_FILE = ".in_use"  # in a folder that a process writes into


def is_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a path is one of a bucket (`gs://...`), where nothing is renamed."""
    return "://" in os.fspath(path)


def reachable(path: str | os.PathLike[str]) -> epath.Path:
    """The path, if what it takes to reach it is installed. Returns: epath.Path.

    Raises:
      ValueError: the path is one of a bucket, and a package is missing.
    """
    if is_bucket(path):
        scheme = os.fspath(path).split("://")[0]
        try:
            fsspec.get_filesystem_class("gcs" if scheme == "gs" else scheme)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{path}: {error}; for gs:// paths: pip install gcsfs google-cloud-storage google-cloud-storage-control"
            ) from error
    return epath.Path(path)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file on a disk to read its bytes; what only looks like one (a pipe, a device) may never answer or end.

    Args:
      path: of the file; links are followed.

    Returns:
      A binary file object.

    Raises:
      OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # (without it, a pipe waits for its writer)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is a pipe or a device, and no file", os.fspath(path))


def read_regular(path: str | os.PathLike[str], max_bytes: float = math.inf) -> bytes:
    """The bytes of a file on a disk.

    Raises:
      OSError: as `open_regular`, or there are more than max_bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, at most {max_bytes:,} are read", os.fspath(path))
        return file.read()


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The path itself where it is one of a bucket, else made absolute. Returns: epath.Path."""
    path = epath.Path(path)
    return path if is_bucket(path) else epath.Path(os.path.abspath(path))


def join(*parts: str | os.PathLike[str]) -> str:
    """`os.path.join`, in which a bucket counts as absolute. Returns: str."""
    for place in range(len(parts) - 1, 0, -1):
        if is_bucket(parts[place]):
            parts = parts[place:]
            break
    return os.path.join(*parts)


def output_folder(path: str | os.PathLike[str], option: str = "--output") -> pathlib.Path:
    """Makes a folder that a command writes to, and finds out whether it can, before any work is done.

    Args:
      path: of the folder, on a disk.
      option: that named it.

    Returns:
      pathlib.Path.

    Raises:
      UserError: it cannot be written to.
    """
    if is_bucket(path):
        raise UserError(f"{option}={path} is in a bucket: name a folder on a disk, and copy it from there")
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{option}={path}: a file has this name, or that of a folder above it: name a folder") from None
    except OSError as error:
        raise UserError(
            f"cannot write to {option}={path} ({error.strerror}): name a folder on a disk that can be written to"
        ) from error
    return folder


def require_writable(path: str | os.PathLike[str], option: str) -> None:
    """Finds out whether a file can be written, before any work is done. Args: path; option, that named it.

    Raises:
      UserError: it cannot.
    """
    if is_bucket(path):
        return
    path = pathlib.Path(path)
    if path.is_dir():
        raise UserError(f"{option}={path} is a folder: name a file")
    try:
        output_folder(path.parent, option)
    except UserError as error:
        raise UserError(f"{option}={path} cannot be written: {error}") from error


@contextlib.contextmanager
def whole(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[pathlib.Path]:
    """Gives a path on a disk of this machine to write to; at the end the content is the file's, whole.

    Where the body raises, nothing is left, and a file that was there before stays.

    Args:
      path: of the file, on a disk or in a bucket; its folder exists. The temporary file has its suffix.
      sync: whether to wait until a disk has it. One of many thousands, which can be made again, need not be waited for.

    Yields:
      pathlib.Path, not there yet.
    """
    target_path = epath.Path(path)
    if is_bucket(target_path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = pathlib.Path(folder) / target_path.name
            yield temporary
            with open(temporary, "rb") as source, target_path.open("wb") as target:
                shutil.copyfileobj(source, target, 2**24)
        return
    # The suffix stays, since writers choose the format by it; the name is this process's alone.
    temporary = pathlib.Path(target_path.parent, f".{target_path.stem}.{os.getpid()}{target_path.suffix}")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk is told of without a name
    finally:
        temporary.unlink(missing_ok=True)


_LEFT_OVER = re.compile(r"\..+(\.\d+(\.[^.]*)?|\.tmp)")  # names that `whole` gives to what it writes


def remove_left_overs(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of files that they wrote by `whole`. Args: folder that this process holds."""
    for path in pathlib.Path(folder).iterdir():
        if _LEFT_OVER.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder for this process, so that a second one does not write into it at the same time.

    The system releases the lock when a process ends, however it ends: a killed one leaves nothing to clean up. Folders
    in buckets, and disks whose file system knows no locks, are not guarded.

    Args:
      folder: exists.

    Raises:
      UserError: another process holds it; the message names its host, its number and since when.
    """
    path = epath.Path(folder) / LOCK_FILE
    if is_bucket(path):
        yield
        return
    while True:
        file = open(path, "a+")  # noqa: SIM115 (closed below; a `with` would close it before the body has run)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{folder} is in use by {holder}: wait for it to end or stop it, or name another folder"
            ) from None
        except OSError:  # a file system without locks
            break
        # The holder before may have removed the file between our opening and locking it.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            break
        file.close()
    try:
        file.truncate(0)
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        file.write(f"process {os.getpid()} on {platform.node()}, since {now}")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        file.close()


def write_bytes(path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
    """Writes a file whole or not at all. Args: path, on a disk or in a bucket; data, bytes; sync, see `whole`."""
    if is_bucket(path):
        epath.Path(path).write_bytes(data)
        return
    with whole(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = True) -> None:
    """Writes a text file in UTF-8 whole or not at all. Args: as `write_bytes`, with text."""
    write_bytes(path, text.encode(), sync=sync)
