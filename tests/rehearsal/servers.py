"""The archives on loopback, to be stopped and started again: IDC as S3, Zenodo as plain HTTP."""

import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Files(SimpleHTTPRequestHandler):
    """A file server.  server.ranges: whether it honours Range.  server.cut: names whose first answer is cut off."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        content, spec = path.read_bytes(), self.headers.get("Range")
        start = int(spec.removeprefix("bytes=").partition("-")[0]) if spec and self.server.ranges else None
        if start is not None and start >= len(content):
            return self.send_error(416)
        self.server.asked.append((path.name, start))
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        rest = content[start or 0 :]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if path.name in self.server.cut:
            self.server.cut.remove(path.name)
            rest, self.close_connection = rest[: len(rest) // 2], True
        self.wfile.write(rest)


class Zenodo:
    """Zenodo's files, from a folder.  It comes back at its old address."""

    def __init__(self, served: Path, ranges: bool, cut: tuple[str, ...] = ()):
        self._handler = partial(_Files, directory=str(served))
        self._port, self._state = 0, {"ranges": ranges, "cut": list(cut), "asked": []}
        self.start()

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        vars(self._server).update(self._state)
        self._server.handle_error = lambda *_: None  # a client that was killed
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def set(self, **state) -> None:
        self._state |= state
        vars(self._server).update(state)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def asked(self) -> list[tuple[str, int | None]]:
        """(file, first byte where a range was asked for) of the requests so far."""
        return self._state["asked"]


class Moto:
    """IDC by moto, an S3 of other people; what is in it outlives a stop."""

    def __init__(self, served: Path):
        from moto.s3.models import get_canned_acl, s3_backends

        self._port, acl = 0, get_canned_acl("public-read")
        self.start()
        backend = s3_backends["123456789012"]["aws"]
        for bucket in sorted(served.glob("idc-open-data*")):
            backend.create_bucket(bucket.name, "us-east-1")
            backend.put_bucket_acl(bucket.name, acl)
            for path in sorted(bucket.rglob("*.dcm")):
                key = backend.put_object(bucket.name, path.relative_to(bucket).as_posix(), path.read_bytes())
                key.set_acl(acl)

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        _, self._port = self._server.get_host_and_port()

    def stop(self) -> None:
        self._server.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"
