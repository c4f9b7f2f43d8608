"""Looks at the HTML of reports: its elements, and what a browser says to it."""

import html.parser
import shutil
import subprocess

SECTIONS = ["card", "classes", "precision-recall", "confusion", "errors", "images", "data"]


class Elements(html.parser.HTMLParser):
    """Tags with their classes, and all addresses."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.seen.append((tag, attributes.get("class")))
        self.links += [value for name, value in attributes.items() if name in ("src", "href", "action")]

    def count(self, tag, of_class=None):
        return sum(tag == one and of_class in (None, name) for one, name in self.seen)


def find_browser():
    return shutil.which("chromium")


def console_errors(path, profile):
    """(what the page's script complains of, its elements as they are then)."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", "--no-first-run"]
    command += ["--disable-quic", "--disable-background-networking", "--disable-component-update", "--dump-dom"]
    command += ["--enable-logging=stderr", f"--user-data-dir={profile}", f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout
