"""XML annotation files as trees that know their lines, and the objects in them with every oddity named.

The data sets that come as XML differ in their tags alone, so each gives three small functions (what an object's class,
its corners and its difficulty are) and everything else happens here.
"""

import math
import pathlib
import re
import xml.parsers.expat

import numpy as np

from haksnet_jax.labels import dota as labels


class AnnotationError(ValueError):
    """Something wrong with one object; `reason` is a short key, `line` where it stands (0: with the object)."""

    def __init__(self, reason, message, line=0):
        super().__init__(message)
        self.reason = reason
        self.line = line


class Node:
    """An XML element: its tag, text, children and the line it begins in."""

    def __init__(self, tag, line):
        self.tag, self.line, self.text, self.children = tag, line, "", []

    def all(self, path):
        """Every element at `path` below this one: "objects/object"."""
        tag, _, rest = path.partition("/")
        found = [child for child in self.children if child.tag == tag]
        return [node for child in found for node in child.all(rest)] if rest else found

    def one(self, path):
        """The first element at `path`.

        Raises:
          AnnotationError: there is none.
        """
        found = self.all(path)
        if not found:
            raise AnnotationError("missing_tag", f"<{self.tag}> has no <{path.replace('/', '><')}>", self.line)
        return found[0]

    def number(self, path):
        """The number written in the element at `path`.

        Raises:
          AnnotationError: there is no such element, or it holds no finite number.
        """
        node = self.one(path)
        try:
            value = float(node.text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise AnnotationError("bad_number", f"expected a number in <{node.tag}>, found '{node.text}'", node.line)
        return value


def read_tree(path):
    """Reads an XML file.

    Returns:
      The root Node, with the texts stripped of blanks.

    Raises:
      AnnotationError: the file is no well-formed XML.
      OSError: the file cannot be read.
    """
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    top = Node("", 0)
    stack = [top]

    def start(tag, _):
        node = Node(tag, parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def end(_):
        node = stack.pop()
        node.text = node.text.strip()

    def characters(text):
        stack[-1].text += text

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, characters
    try:
        parser.Parse(pathlib.Path(path).read_bytes(), True)
    except xml.parsers.expat.ExpatError as error:
        message = xml.parsers.expat.errors.messages[error.code]
        raise AnnotationError("bad_xml", f"the file is no well-formed XML: {message}", error.lineno) from None
    return top.children[0]


def _plain(name):
    return re.sub(r"[\s_-]+", "", name).lower()


def find_class(name, class_names):
    """The label of a class: by its exact name, else by the name without case, blanks, hyphens and underscores.

    Raises:
      AnnotationError: there is no such class.
    """
    if name in class_names:
        return class_names.index(name)
    plain = [_plain(known) for known in class_names]
    if _plain(name) in plain:
        return plain.index(_plain(name))
    raise AnnotationError(
        "unknown_class",
        f"class '{name}' is not among the {len(class_names)} given ones ({', '.join(class_names[:4])}, ...)",
    )


def collect(path, items, class_names, describe):
    """Turns the raw objects of one annotation file into Objects, and what cannot be turned into Problems.

    Args:
      path: the file, for the problems.
      items: (line, raw object) of each object.
      class_names: the classes, in the order of their labels.
      describe: raw object -> (class name, [4, 2] corners in pixels, difficulty); may raise AnnotationError.

    Returns:
      (labels.Objects, list of labels.Problem).
    """
    polygons, classes, difficulties, lines, problems = [], [], [], [], []
    for line, item in items:
        try:
            name, polygon, difficulty = describe(item)
            label = find_class(name, class_names)
            polygon = np.asarray(polygon, np.float64).reshape(4, 2)
            if not labels.polygons_to_boxes(polygon[None])[1][0]:
                raise AnnotationError("zero_area", "the four points lie on one line, so the object has no area")
        except AnnotationError as error:
            problems.append(labels.Problem(str(path), error.line or line, error.reason, str(error)))
            continue
        polygons.append(polygon)
        classes.append(label)
        difficulties.append(int(difficulty))
        lines.append(line)
    objects = labels.Objects(
        np.array(polygons, np.float64).reshape(-1, 4, 2),
        np.array(classes, np.int32),
        np.array(difficulties, np.int32),
        np.array(lines, np.int32),
    )
    return objects, problems


def read_xml(path, class_names, *, objects_at, describe):
    """Reads the objects of one XML annotation file.

    Args:
      path: the file.
      class_names: the classes, in the order of their labels.
      objects_at: where the objects are below the root: "object" or "objects/object".
      describe: Node of an object -> (class name, [4, 2] corners in pixels, difficulty).

    Returns:
      (labels.Objects, list of labels.Problem). The content never raises.

    Raises:
      OSError: the file cannot be read.
    """
    try:
        nodes = read_tree(path).all(objects_at)
    except AnnotationError as error:
        objects, _ = collect(path, [], class_names, describe)
        return objects, [labels.Problem(str(path), error.line, error.reason, str(error))]
    return collect(path, [(node.line, node) for node in nodes], class_names, describe)
