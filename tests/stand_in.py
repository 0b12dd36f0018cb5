"""The archives, served from a folder on loopback: as much of S3 and of a file server as the downloads use."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PIECE = 1 << 14


class Archive(BaseHTTPRequestHandler):
    """GET and HEAD of a file, with ranges; GET of a bucket with a prefix lists it as S3 does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def list(self, bucket, prefix):
        paths = sorted(p for p in bucket.rglob("*") if p.is_file())
        keys = [(p.relative_to(bucket).as_posix(), p.stat().st_size) for p in paths]
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{n}</Size><ETag>e</ETag><StorageClass>STANDARD</StorageClass>"
            "<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for k, n in keys
            if k.startswith(prefix)
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
        self.send(200, body, Content_Type="application/xml")

    def do_GET(self):
        parts = urlsplit(self.path)
        path, query = self.server.folder / unquote(parts.path).lstrip("/"), parse_qs(parts.query)
        self.server.asked.append(self.path)
        if path.is_dir():
            return self.list(path, query.get("prefix", [""])[0])
        if not path.is_file():
            return self.send(404, b"<Error><Code>NoSuchKey</Code></Error>", Content_Type="application/xml")
        return self.file(path)

    do_HEAD = do_GET

    def file(self, path):
        content, spec = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(content) - 1
        if spec:
            low, _, high = spec.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
            if first > last:
                return self.send(416)
        self.send_response(206 if spec else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        if spec:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            for start in range(first, last + 1, PIECE):
                self.wfile.write(content[start : min(start + PIECE, last + 1)])
                time.sleep(self.server.pause_s)


@contextmanager
def serve(folder, pause_s=0.0):
    """Serve a folder; yields the server, with `.url`, `.asked` (the requests so far) and `.pause_s` per 16 kB."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    server.folder, server.pause_s, server.asked, server.daemon_threads = Path(folder), pause_s, [], True
    server.handle_error = lambda *_: None  # a client that was killed
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
