"""What hosts tell each other: lines of JSON, bounded in size, checked in kind, and signed where they meet.

A signature is an HMAC over the message and a number that the receiver chose for this connection: it shows that the
sender has the run's token, without sending it, and cannot be used again.
"""

import hashlib
import hmac
import json
import socket
from typing import Any

from haksnet_jax import json_files

MAX_BYTES = 2**18  # of a message: a configuration has a few thousand
_MAX_FACTS = 20_000


class LineReader:
    """Collects what a socket sends, without waiting, until a line is there."""

    def __init__(self) -> None:
        self.data = b""

    def read(self, connection: socket.socket) -> bytes | None:
        """Takes what has arrived.

        Returns:
          A line (bytes without its end), None where there is none yet, or b"" where there will be none: the connection
          ended, failed, or sends more than a message may have.
        """
        try:
            part = connection.recv(65536)
        except (BlockingIOError, InterruptedError, TimeoutError):
            return None
        except OSError:
            return b""
        self.data += part
        line, end, _ = self.data.partition(b"\n")  # (of two lines, the first says why)
        if end:
            return line if line and len(line) <= MAX_BYTES else b""
        return b"" if not part or len(self.data) > MAX_BYTES else None


def _signature(token, challenge, body):
    return hmac.new(b"haksnet_jax" + token.encode(), f"{challenge}\n{body}".encode(), hashlib.sha256).hexdigest()


def signed(message: dict[str, Any], token: str, challenge: str) -> bytes:
    """A message as a line. Args: message, dict; token, of the run; challenge, text that the receiver chose."""
    body = json.dumps(message)
    return json.dumps({"body": body, "signature": _signature(token, challenge, body)}).encode() + b"\n"


def verified(line: bytes, token: str, challenge: str) -> Any:
    """The message in a signed line, or None where it is not one or not signed with this token and challenge."""
    envelope = parsed(line)
    if not isinstance(envelope, dict) or envelope.keys() != {"body", "signature"}:
        return None
    body, signature = envelope["body"], envelope["signature"]
    if not isinstance(body, str) or not isinstance(signature, str) or not body.isascii() or not signature.isascii():
        return None
    if not hmac.compare_digest(signature, _signature(token, challenge, body)):
        return None
    return parsed(body)


def parsed(text: bytes | str) -> Any:
    """The value of a line of JSON, or None where it is none."""
    try:
        return json_files.parse(text, where="message")
    except ValueError:
        return None


# Kinds and sizes, before anything uses a message.


def is_report(message: Any) -> bool:
    """Whether a message is what a host tells host 0."""
    return (
        isinstance(message, dict)
        and message.keys() == {"host", "num_hosts", "name", "facts", "challenge"}
        and all(type(message[key]) is int and 0 <= message[key] < 1 << 20 for key in ("host", "num_hosts"))
        and all(is_text(message[key], 300) for key in ("name", "challenge"))
        and isinstance(message["facts"], dict)
        and len(message["facts"]) <= _MAX_FACTS
        and all(value is None or isinstance(value, str | int | float) for value in message["facts"].values())
    )


def is_answer(message: Any) -> bool:
    """Whether a message is what host 0 answers."""
    return (
        isinstance(message, dict)
        and message.keys() == {"error", "name"}
        and is_text(message["name"], 300)
        and (message["error"] is None or is_text(message["error"], 10_000))
    )


def is_end(message: Any) -> bool:
    """Whether a message says that a host ends."""
    return (
        isinstance(message, dict)
        and {"end"} <= message.keys() <= {"end", "grace"}
        and (message["end"] is None or is_text(message["end"], 20_000))
        and type(message.get("grace", 0.0)) in (int, float)
        and 0 <= message.get("grace", 0.0) <= 60
    )


def is_text(value: Any, length: int) -> bool:
    return isinstance(value, str) and len(value) <= length


def shown(value: Any, length: int = 200) -> str:
    """A value of another host in a message: short, without control characters."""
    text = json_files.printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= length else f"{text[:length]}..."
