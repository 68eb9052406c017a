"""A bucket on loopback: gcp-storage-emulator, with faults that a test can ask for.

A request that meets a fault is answered 503 or 403, answered late, or its connection is cut in the
middle of what it sends. `Bucket.environment` sends every library of a process to this bucket.
"""

import contextlib
import dataclasses
import json
import re
import threading
import time
from http import server

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage as emulated
from gcp_storage_emulator.handlers import buckets, objects

NAME = "bucket"


@dataclasses.dataclass
class Fault:
    """What happens to the next `times` requests of a method (or any) whose path holds a text.

    Attributes:
      kind: "503", "403", "slow" or "cut".
      seconds: how late a slow answer is.
      met: how many requests have met it.
    """

    kind: str
    method: str = ""
    holds: str = ""
    times: int = 1
    seconds: float = 0.0
    met: int = 0


class Bucket:
    """The server, in threads of this process.

    Attributes:
      environment: variables that send gcsfs, tensorstore and their authentication here.
      faults: to be added to and looked at.
      requests: method and path of each request so far.
    """

    def __init__(self):
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.storage = emulated.Storage(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        self._server = server.ThreadingHTTPServer(("localhost", 0), self._handler())
        self._server.daemon_threads = True
        url = f"http://localhost:{self._server.server_address[1]}"
        self.environment = {
            "EPATH_USE_TF": "false",
            "FSSPEC_GCS": json.dumps({"use_listings_cache": False, "requests_timeout": 5}),
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
        }
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def put(self, folder, name):
        """Copies a local folder to gs://bucket/NAME; returns that."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                key = f"{name}/{path.relative_to(folder)}"
                made = objects._make_object_resource("", NAME, key, None, len(content))
                made = objects._checksums(content, made)
                self.storage.create_file(NAME, key, content, made)
        return f"gs://{NAME}/{name}"

    def names(self, prefix=""):
        """Names of all objects that begin so."""
        with self.lock:
            found = self.storage.objects.get(NAME, {})
            return sorted(name for name in found if name.startswith(prefix))

    def content(self, name):
        """The bytes of an object."""
        with self.lock:
            return self.storage.get_file(NAME, name)

    def close(self):
        """Ends the server."""
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        bucket = self

        class Handler(emulator.RequestHandler):
            def __init__(self, *arguments):
                super().__init__(bucket.storage, *arguments)

            def handle_one_request(self):
                with contextlib.suppress(ConnectionError):  # the client was killed
                    super().handle_one_request()

            def _answer(self, method):
                with bucket.lock:
                    bucket.requests.append((method, self.path))
                    fault = bucket.fault(method, self.path)
                if fault is not None and fault.kind.isdecimal():
                    self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    self.send_response(int(fault.kind))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault is not None and fault.kind == "cut":
                    self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
                    self.connection.close()
                    return
                if fault is not None:
                    time.sleep(fault.seconds)
                with bucket.lock:
                    if "/moveTo/" in self.path:
                        self._move()
                    elif self._unwanted():
                        self.rfile.read(int(self.headers.get("Content-Length") or 0))
                        self.send_response(304 if method == "GET" else 412)
                        self.end_headers()
                    else:
                        emulator.Router(self).handle(method)

            def _generation(self):
                """The version of the object that is spoken of; "0": there is none."""
                url = emulator.urlparse(self.path)
                name = emulator.parse_qs(url.query).get("name")
                key = name[0] if name else emulator.unquote(url.path.partition("/o/")[2])
                return self.storage.objects.get(NAME, {}).get(key, {}).get("generation", "0")

            def _unwanted(self):
                """Whether a condition of the request is not met, which the emulator never asks."""
                query = emulator.parse_qs(emulator.urlparse(self.path).query)
                wanted = query.get("ifGenerationMatch", [None])[0]
                known = query.get("ifGenerationNotMatch", [None])[0]
                return (
                    wanted not in (None, self._generation()) or known == self._generation() != "0"
                )

            def end_headers(self):
                if self.command == "GET" and "alt=media" in self.path:
                    self.send_header("x-goog-generation", self._generation())
                super().end_headers()

            def _move(self):
                """Renames an object, which the emulator does not know."""
                found = re.search(r"/b/([^/]+)/o/([^/]+)/moveTo/o/([^/?]+)", self.path)
                place, source, target = map(emulator.unquote, found.groups())
                response = emulator.Response(self)
                try:
                    content = self.storage.get_file(place, source)
                except emulated.NotFound:
                    response.status = emulator.HTTPStatus.NOT_FOUND
                    response.close()
                    return
                made = objects._make_object_resource("", place, target, None, len(content))
                made = objects._checksums(content, made)
                self.storage.create_file(place, target, content, made)
                self.storage.delete_file(place, source)
                response.json(made)
                response.close()

            def do_GET(self):
                self._answer("GET")

            def do_POST(self):
                self._answer("POST")

            def do_PUT(self):
                self._answer("PUT")

            def do_DELETE(self):
                self._answer("DELETE")

        return Handler

    def fault(self, method, path):
        """The fault that a request meets, if any."""
        for fault in self.faults:
            if fault.met < fault.times and fault.method in ("", method) and fault.holds in path:
                fault.met += 1
                return fault
        return None
