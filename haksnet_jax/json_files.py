"""JSON that may come from anywhere: read within limits, and compared with a schema before anything uses it."""

import functools
import json
import math
import os
import re
from typing import Any

from etils import epath

from haksnet_jax.errors import UserError

# An empty list takes 3 bytes of text and 64 of memory: files of this size stay below half a gigabyte.
MAX_BYTES = 16 << 20


def load(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, error: type[ValueError] = UserError) -> Any:
    """Reads a JSON file.

    Args:
      path: the file, on a disk or in a bucket.
      max_bytes: the most bytes that it may have.
      error: class of the exception.

    Returns:
      What it holds; all of its numbers are finite.

    Raises:
      UserError (or `error`): it cannot be read, is too long, not JSON, nested too deeply, or names a key twice.
    """
    file = epath.Path(path)
    try:
        size = file.stat().length
        if size > max_bytes:
            raise error(f"{path} has {size:,} bytes, expected a JSON file of at most {max_bytes:,}")
        data = file.read_bytes()
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}") from reason
    return parse(data, where=str(file), error=error)


def parse(data: bytes | str, *, where: str, error: type[ValueError] = UserError) -> Any:
    """Reads JSON.

    Args:
      data: bytes (UTF-8, with or without a mark at the start) or str.
      where: the file, for messages.
      error: class of the exception.

    Returns, Raises: as `load`.
    """

    def constant(name):
        raise error(f"{where}: it holds {name}, which is no number in JSON")

    def number(text):
        value = float(text)
        if math.isinf(value):
            raise error(f"{where}: it holds the number {text[:20]}, which is too large")
        return value

    def pairs(found):
        result = dict(found)
        if len(result) < len(found):
            seen = set()
            name = next(name for name, _ in found if name in seen or seen.add(name))
            raise error(f"{where}: it names the key {quoted(name)} twice in one place")
        return result

    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, parse_constant=constant, parse_float=number, object_pairs_hook=pairs)
    except error:
        raise
    except UnicodeDecodeError as reason:
        raise error(f"{where} is not valid JSON: byte {reason.start:,} is not UTF-8") from None
    except json.JSONDecodeError as reason:
        raise error(f"{where}:{reason.lineno}: not valid JSON ({reason.msg})") from None
    except RecursionError:
        raise error(f"{where}: its JSON is nested too deeply") from None
    except ValueError:  # Python's limit on the digits of a whole number
        raise error(f"{where}: it holds a whole number of thousands of digits") from None


def check(value: Any, schema: dict[str, Any], *, where: str, error: type[ValueError] = UserError) -> None:
    """Compares a value with a JSON schema (draft 2020-12; whole numbers are those without a decimal point).

    Subschemas carry a `description` of what is expected, which the message quotes. Keywords that bound a length
    come first in them, since the first one that fails ends the check.

    Args:
      value: as from `load`.
      schema: dict.
      where: the file, for the message.
      error: class of the exception.

    Raises:
      UserError (or `error`): a sentence with the file, the path inside it, what is there and what was expected.
    """
    try:
        found = next(_validator()(schema).iter_errors(value), None)
    except RecursionError:  # the parser goes as deep as Python, and the library's messages a little deeper
        raise error(f"{where}: its JSON is nested too deeply") from None
    if found is None:
        return
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found.absolute_path).lstrip(".")
    place = printable(place[:120]) or "its content"
    expected = found.schema.get("description", f"something that agrees with {found.validator}")
    if found.validator == "required":
        missing = next(name for name in found.validator_value if name not in found.instance)
        raise error(f"{where}: {'' if place == 'its content' else place + '.'}{missing} is missing")
    if found.validator == "additionalProperties" and found.validator_value is False:
        extra = next(name for name in found.instance if name not in found.schema.get("properties", {}))
        raise error(f"{where}: {place} has the unknown key {quoted(extra)}")
    raise error(f"{where}: {place} is {quoted(found.instance)}, expected {expected}")


@functools.cache
def _validator():
    import jsonschema  # a tenth of a second, for those who read such a file

    checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int)
    return jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=checker)


def quoted(value: Any) -> str:
    """A value in a message: short ones as they are written, long ones by kind and size, no control characters."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return (
            printable(repr(value)) if len(value) <= 60 else printable(repr(value[:40])) + f"... ({len(value)} letters)"
        )
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value)


def printable(text: str) -> str:
    """Text in which everything that a terminal might obey is escaped."""
    return re.sub(r"[^\n]", lambda m: m[0] if m[0].isprintable() else m[0].encode("unicode_escape").decode(), text)
