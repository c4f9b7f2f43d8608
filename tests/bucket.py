"""A bucket of this machine: `gs://` for `epath` (through fsspec) and for TensorStore (over HTTP), of one content.

Of the storage's interface only what Orbax and this package ask for. As in the real one, an object appears with its
whole content, there are no folders but the names' own, and nothing can be renamed.
"""

import contextlib
import http.server
import io
import json
import os
import sys
import threading
import types
import urllib.parse
from unittest import mock

import fsspec


class Objects(dict):
    """{"bucket/name": bytes}, with the number of each object's version."""

    def __init__(self):
        super().__init__()
        self.lock = threading.RLock()
        self.generations = {}
        self.counter = 0

    def __setitem__(self, name, data):
        with self.lock:
            self.counter += 1
            self.generations[name] = self.counter
            super().__setitem__(name, bytes(data))


class BucketFileSystem(fsspec.AbstractFileSystem):
    """fsspec's view of the objects; `renamed` is what was asked to be renamed (and was refused)."""

    protocol = ("gs", "gcs")
    cachable = False
    objects = Objects()

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://").removeprefix("gcs://").strip("/")

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        with self.objects.lock:
            names = list(self.objects)
        if path in names:
            return [self.info(path)] if detail else [path]
        beginning = path + "/"
        entries = sorted(
            {beginning + name[len(beginning) :].split("/")[0] for name in names if name.startswith(beginning)}
        )
        if not entries and "/" in path:
            raise FileNotFoundError(path)
        return [self.info(entry) for entry in entries] if detail else entries

    def info(self, path, **_):
        path = self._strip_protocol(path)
        with self.objects.lock:
            if path in self.objects:
                return {"name": path, "size": len(self.objects[path]), "type": "file"}
            if "/" not in path or any(name.startswith(path + "/") for name in self.objects):
                return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def mkdir(self, path, create_parents=True, **_):
        """Nothing: folders are but the beginnings of names."""

    def makedirs(self, path, exist_ok=False):
        """Nothing, as `mkdir`."""

    def rm_file(self, path):
        with self.objects.lock:
            if self.objects.pop(self._strip_protocol(path), None) is None:
                raise FileNotFoundError(path)

    _rm = rm_file

    def rm(self, path, recursive=False, maxdepth=None):
        path = self._strip_protocol(path)
        with self.objects.lock:
            inside = [name for name in self.objects if name == path or (recursive and name.startswith(path + "/"))]
        if not inside:
            raise FileNotFoundError(path)
        for name in inside:
            self.rm_file(name)

    def mv(self, path1, path2, **_):
        raise AssertionError(f"a bucket cannot rename {path1} to {path2} at once")

    rename = move = cp_file = mv

    def _open(self, path, mode="rb", **_):
        path = self._strip_protocol(path)
        if mode == "rb":
            if path not in self.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(self.objects[path])
        return _Upload(self.objects, path)


class _Upload(io.BytesIO):
    """The object appears when the upload ends."""

    def __init__(self, objects, name):
        super().__init__()
        self._objects, self._name = objects, name

    def close(self):
        if not self.closed:
            self._objects[self._name] = self.getvalue()
        super().close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """The part of the storage's JSON interface that TensorStore uses."""

    protocol_version = "HTTP/1.1"
    objects = BucketFileSystem.objects

    def log_message(self, *_):
        """Quiet."""

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _parse(self):
        url = urllib.parse.urlsplit(self.path)
        query = {name: values[0] for name, values in urllib.parse.parse_qs(url.query, keep_blank_values=True).items()}
        parts = url.path.split("/b/", 1)[1].split("/")
        name = urllib.parse.unquote("/".join(parts[2:]))
        return parts[0], name, query

    def _metadata(self, bucket, name):
        key = f"{bucket}/{name}"
        return {
            "name": name, "bucket": bucket, "size": str(len(self.objects[key])),
            "generation": str(self.objects.generations[key]), "updated": "2026-01-01T00:00:00Z",
        }  # fmt: skip

    def _refused(self, key, query):
        """Whether a condition on the object's version does not hold."""
        wanted = query.get("ifGenerationMatch")
        now = self.objects.generations[key] if key in self.objects else 0
        return wanted is not None and int(wanted) != now

    def do_GET(self):
        bucket, name, query = self._parse()
        key = f"{bucket}/{name}"
        with self.objects.lock:
            if not name:
                return self._list(bucket, query)
            if key not in self.objects:
                return self._answer(404)
            if query.get("alt") != "media":
                return self._answer(200, json.dumps(self._metadata(bucket, name)).encode())
            if str(self.objects.generations[key]) == query.get("ifGenerationNotMatch"):
                return self._answer(304)
            if self._refused(key, query):
                return self._answer(412)
            data, generation = self.objects[key], str(self.objects.generations[key])
        wanted = self.headers.get("Range")
        if wanted is None:
            return self._answer(200, data, x_goog_generation=generation)
        first, last = wanted.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= len(data):
            return self._answer(416)
        return self._answer(
            206, data[start:stop], x_goog_generation=generation, Content_Range=f"bytes {start}-{stop - 1}/{len(data)}"
        )

    def _list(self, bucket, query):
        beginning = query.get("prefix", "")
        names = sorted(key.split("/", 1)[1] for key in self.objects if key.startswith(f"{bucket}/{beginning}"))
        items = [
            self._metadata(bucket, name)
            for name in names
            if query.get("startOffset", "") <= name and not ("endOffset" in query and name >= query["endOffset"])
        ]
        self._answer(200, json.dumps({"kind": "storage#objects", "items": items}).encode())

    def do_POST(self):
        bucket, _, query = self._parse()
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = f"{bucket}/{query['name']}"
        with self.objects.lock:
            if self._refused(key, query):
                return self._answer(412)
            self.objects[key] = data
            self._answer(200, json.dumps(self._metadata(bucket, query["name"])).encode())

    def do_DELETE(self):
        bucket, name, query = self._parse()
        key = f"{bucket}/{name}"
        with self.objects.lock:
            if key not in self.objects:
                return self._answer(404)
            if self._refused(key, query):
                return self._answer(412)
            del self.objects[key]
        self._answer(204)


@contextlib.contextmanager
def local_bucket():
    """Makes `gs://...` a bucket of this process. Yields: its Objects."""
    server = http.server.ThreadingHTTPServer(("localhost", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    BucketFileSystem.objects.clear()
    for protocol in BucketFileSystem.protocol:
        fsspec.register_implementation(protocol, BucketFileSystem, clobber=True)
    # Orbax asks Google's library whether a bucket has real folders, before it removes an old checkpoint.
    google_cloud = types.ModuleType("google.cloud")
    google_cloud.storage = types.SimpleNamespace(Client=lambda: types.SimpleNamespace(get_bucket=lambda name: object()))
    environment = {
        "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{server.server_port}",
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "EPATH_USE_TF": "false",
    }
    try:
        with mock.patch.dict(os.environ, environment), mock.patch.dict(sys.modules, {"google.cloud": google_cloud}):
            yield BucketFileSystem.objects
    finally:
        server.shutdown()
        server.server_close()
