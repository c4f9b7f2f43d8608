"""JSON and XML annotation files, checked before anything in them is used: their form, depth, size and numbers.

Everything that is wrong becomes a `FormatError` with a reason, the file's line where there is one, and the path inside
the file. No part of a file is executed, and no other file or address that it names is opened.
"""

import codecs
import errno
import os
import re
import xml.sax
from collections.abc import Mapping
from typing import Any

import defusedxml.sax
import msgspec
from defusedxml import DefusedXmlException

from haksnet_jax import files
from haksnet_jax.labels import encodings
from haksnet_jax.labels.problems import Problem, Reason, shortened

MAX_BYTES = 2**30  # of one annotation file
MAX_DEPTH = 64  # elements or lists inside each other
MAX_ELEMENTS = 2_000_000  # of one XML file, about 300 bytes of memory each


class FormatError(ValueError):
    """Something wrong with one annotation file or one object in it.

    Attributes:
      reason: a Reason.
      line: where it stands, from 1; 0 where that is not known.
    """

    def __init__(self, reason: Reason, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.line = line

    def problem(self, path: str | os.PathLike[str]) -> Problem:
        """The Problem of it. Args: path, the file."""
        return Problem(str(path), self.line, self.reason, str(self))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an annotation file.

    Raises:
      FormatError: there are more than MAX_BYTES.
      OSError: the file cannot be read.
    """
    try:
        return files.read_regular(path, MAX_BYTES)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise FormatError(Reason.TOO_LARGE, error.strerror or str(error)) from None


def decode_json(data: bytes | msgspec.Raw, form: Any, where: str = "$") -> Any:
    """JSON as a value of a given form.

    Args:
      data: bytes in UTF-8 or UTF-16, or a msgspec.Raw.
      form: a type that msgspec decodes to.
      where: the path of the data inside the file, for messages.

    Raises:
      FormatError: the data are no JSON, of another form, nested too deeply, or hold a number out of range.
    """
    if isinstance(data, bytes) and data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
    elif isinstance(data, bytes) and encodings.is_wide(data):
        data = encodings.decode(data).lstrip("\ufeff").encode("utf-8", errors="replace")
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.ValidationError as error:
        text, _, inside = str(error).partition(" - at `$")
        reason = Reason.BAD_JSON if where == "$" else Reason.BAD_OBJECT
        raise FormatError(reason, f"{shortened(text, 200)}, at {where}{inside.rstrip('`')}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(
            Reason.BAD_JSON, f"the file is no JSON that can be read: {shortened(str(error), 200)}"
        ) from None
    except RecursionError:
        raise FormatError(Reason.BAD_JSON, "the file nests lists or objects too deeply") from None


class Node:
    """An XML element: its tag, attributes, text, children and the line it begins in."""

    __slots__ = ("attributes", "children", "line", "tag", "text")

    def __init__(self, tag: str, attributes: Mapping[str, str], line: int) -> None:
        self.tag, self.attributes, self.line, self.text = tag, attributes, line, ""
        self.children: list[Node] = []

    def all(self, path: str) -> list["Node"]:
        """Every element at `path` below this one: "objects/object"."""
        tag, _, rest = path.partition("/")
        found = [child for child in self.children if child.tag == tag]
        return [node for child in found for node in child.all(rest)] if rest else found

    def one(self, path: str) -> "Node":
        """The first element at `path`.

        Raises:
          FormatError: there is none.
        """
        found = self.all(path)
        if not found:
            raise FormatError(Reason.MISSING_TAG, f"<{self.tag}> has no <{path.replace('/', '><')}>", self.line)
        return found[0]

    def number(self, path: str) -> float:
        """The number written in the element at `path`.

        Raises:
          FormatError: there is no such element, or it holds no finite number.
        """
        node = self.one(path)
        return finite(node.text, f"<{node.tag}>", node.line)

    def attribute(self, name: str) -> str:
        """An attribute's text. Raises: FormatError, there is none."""
        if name not in self.attributes:
            raise FormatError(Reason.MISSING_TAG, f"<{self.tag}> has no attribute {name}", self.line)
        return self.attributes[name]

    def attribute_number(self, name: str) -> float:
        """The number in an attribute. Raises: FormatError, there is none."""
        return finite(self.attribute(name), f"{name} of <{self.tag}>", self.line)


def finite(text: str, where: str, line: int = 0) -> float:
    """The number that a text is. Args: where and line, for the error. Raises: FormatError, no finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf") or "_" in text:
        raise FormatError(Reason.BAD_NUMBER, f"expected a number in {where}, found '{shortened(text)}'", line)
    return value


class _TreeBuilder(xml.sax.ContentHandler):
    """Builds Nodes, within the limits."""

    def __init__(self):
        self.top = Node("", {}, 0)
        self._stack = [self.top]
        self._texts = [[]]  # of the elements of the stack, in the pieces that the parser gives
        self._count = 0

    def setDocumentLocator(self, locator):
        self._locator = locator

    def startElement(self, name, attrs):
        self._count += 1
        line = self._locator.getLineNumber()
        if len(self._stack) > MAX_DEPTH:
            raise FormatError(Reason.BAD_XML, f"elements are nested more than {MAX_DEPTH} deep", line)
        if self._count > MAX_ELEMENTS:
            raise FormatError(Reason.TOO_LARGE, f"the file has more than {MAX_ELEMENTS} elements", line)
        node = Node(name, dict(attrs), line)
        self._stack[-1].children.append(node)
        self._stack.append(node)
        self._texts.append([])

    def endElement(self, name):
        node = self._stack.pop()
        node.text = "".join(self._texts.pop()).strip()

    def characters(self, content):
        self._texts[-1].append(content)


# Of these Python's decoders are no encodings of files; the time of the first grows with the square of the length.
_NO_ENCODINGS = frozenset({"punycode", "idna", "unicode_escape", "raw_unicode_escape", "undefined", "utf_7"})
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["'][^>]*\?>""")


def _as_utf8(data):
    """XML bytes in UTF-8, without a declaration of an encoding. The parser itself knows a few encodings alone.

    Raises:
      FormatError: the declared encoding is not known, or the bytes are not in it.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding, declared = "utf-16", None
    else:
        declared = _DECLARED.match(data)
        encoding = declared[1].decode() if declared else "utf-8-sig"
    try:
        if codecs.lookup(encoding).name.replace("-", "_") in _NO_ENCODINGS:
            raise LookupError(encoding)
        text = data.decode("gb18030" if encoding.lower() in ("gbk", "gb2312") else encoding)
    except LookupError:
        detail = f"the file declares the encoding '{encoding}', which is not known"
        raise FormatError(Reason.BAD_ENCODING, detail, 1) from None
    except UnicodeError as error:
        line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
        detail = f"the file is not in the encoding {encoding}{' that it declares' if declared else ''}"
        raise FormatError(Reason.BAD_ENCODING, detail, line) from None
    text = re.sub(
        r"""^(\s*<\?xml[^>]*?)\s+encoding\s*=\s*["'][^"']*["']""", r"\1", text.removeprefix("\ufeff"), count=1
    )
    return text.encode("utf-8", errors="replace")


def read_tree(path: str | os.PathLike[str]) -> Node:
    """Reads an XML file.

    Returns:
      The root Node, with the texts stripped of blanks.

    Raises:
      FormatError: the file is no well-formed XML, defines entities, or is beyond a limit.
      OSError: the file cannot be read.
    """
    handler = _TreeBuilder()
    data = _as_utf8(read_bytes(path))
    try:
        defusedxml.sax.parseString(data, handler)
    except xml.sax.SAXParseException as error:
        detail = f"the file is no well-formed XML: {error.getMessage()}"
        raise FormatError(Reason.BAD_XML, detail, error.getLineNumber() or 0) from None
    except DefusedXmlException as error:
        detail = f"the file defines or names something outside itself ({type(error).__name__}), which is not read"
        raise FormatError(Reason.BAD_XML, detail) from None
    except FormatError:
        raise
    except (LookupError, ValueError) as error:  # an encoding that the parser does not know, or knows and does not read
        raise FormatError(Reason.BAD_XML, f"the file names an encoding that is not read: {error}") from None
    if not handler.top.children:
        raise FormatError(Reason.BAD_XML, "the file is empty")
    return handler.top.children[0]
