"""An output folder that appears whole or not at all, and that one process at a time builds."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from haksnet_jax import files
from haksnet_jax.errors import UserError


@contextlib.contextmanager
def whole_folder(output: str | os.PathLike[str], *, overwrite: bool, known_by: str) -> Iterator[pathlib.Path]:
    """Gives an empty folder to fill; at the end it becomes `output`.

    It lies in a hidden folder beside the output, which a killed process leaves behind: no command takes it for data,
    and the next one for the same output clears it.

    Args:
      output: the folder to be. An empty folder may be there.
      overwrite: True replaces what is there, once the new one is complete.
      known_by: file that tells that what is there was made by the same command; nothing else is ever replaced.

    Yields:
      pathlib.Path of the folder, empty; its parent may be used for work on the way.

    Raises:
      UserError: there is something at `output`, or another process builds it.
      OSError: a folder cannot be made.
    """
    output = pathlib.Path(os.path.abspath(output))
    place = output.parent / f".{output.name}.building"
    output.parent.mkdir(parents=True, exist_ok=True)
    _require_free(output, overwrite, known_by)
    place.mkdir(exist_ok=True)
    try:
        with files.held(place):
            former, folder = place / "former", place / "content"
            if former.exists() and not output.exists():  # killed between the two renamings below
                os.replace(former, output)
            _clear(place)
            _require_free(output, overwrite, known_by)
            try:
                folder.mkdir()
                yield folder
                if output.exists():
                    os.replace(output, former)
                os.replace(folder, output)
            finally:
                _clear(place)
    finally:
        with contextlib.suppress(OSError):  # not empty: another process has begun
            place.rmdir()


def _require_free(output, overwrite, known_by):
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / known_by).is_file():
        raise UserError(f"{output} is there already and was not made by this command: name another --output.")
    if not overwrite:
        raise UserError(f"{output} is there already: name another --output, or build it anew by --overwrite.")


def _clear(place):
    for left in place.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name != files.LOCK_FILE:
            left.unlink()
