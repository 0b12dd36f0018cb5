"""The archives, served from a folder on loopback: as much of S3 and of a file server as the downloads use.

It is a forward proxy too: asked for the address of any host, it answers with what that host would have.
"""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PIECE = 1 << 14
CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}
FAULTS = (
    "silent",  # accepts, and answers nothing
    "slow",  # 1 kB/s
    "truncated",  # half of what was announced, then the connection ends
    "flipped",  # the last byte is another
    "no range",  # all of it, whatever was asked for
    "multipart",  # the listed ETag is no MD5
)


class Archive(BaseHTTPRequestHandler):
    """GET and HEAD of a file, with ranges; GET of a bucket with a prefix lists it as S3 does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def fails(self, kind):
        """Whether the server has this fault for this address, and more such answers to give."""
        where = self.server.faults.get(kind)
        if where is None or where not in self.path or self.server.times == 0:
            return False
        self.server.times -= 1
        return True

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("length", None) or str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status):
        code = CODES.get(status, "Other")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.send(status, body.encode(), Content_Type="application/xml")

    def list(self, bucket, query):
        prefix, after = (query.get(name, [""])[0] for name in ("prefix", "continuation-token"))
        paths = {p.relative_to(bucket).as_posix(): p for p in (bucket / prefix.rpartition("/")[0]).glob("*")}
        keys = sorted(k for k, p in paths.items() if k.startswith(prefix) and k > after and p.is_file())
        page, dash = keys[: self.server.page], "-2" if self.fails("multipart") else ""
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{paths[k].stat().st_size}</Size>"
            f"<ETag>&quot;{hashlib.md5(paths[k].read_bytes()).hexdigest()}{dash}&quot;</ETag>"
            "<StorageClass>STANDARD</StorageClass><LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for k in page
        )
        more = len(keys) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        body = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}"
        space = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
        self.send(
            200, f"<ListBucketResult {space}>{body}</ListBucketResult>".encode(), Content_Type="application/xml"
        )

    def do_GET(self):
        parts = urlsplit(self.path)
        path = self.server.folder / unquote(parts.path).lstrip("/")
        self.server.asked.append(self.path)
        if status := next((s for s in self.server.faults if isinstance(s, int) and self.fails(s)), None):
            return self.refuse(status)
        if self.fails("silent"):
            return self.server.closing.wait()
        if path.is_dir():
            return self.list(path, parse_qs(parts.query))
        return self.file(path) if path.is_file() else self.refuse(404)

    do_HEAD = do_GET

    def file(self, path):
        content, spec = path.read_bytes(), self.headers.get("Range")
        spec = None if self.fails("no range") else spec
        first, last = 0, len(content) - 1
        if spec:
            low, _, high = spec.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
            if first > last:
                return self.send(416)
        if self.fails("flipped"):
            content = content[:-1] + bytes([content[-1] ^ 255])
        self.send_response(206 if spec else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Last-Modified", "Wed, 01 Jan 2020 00:00:00 GMT")
        if spec:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.body(content[first : last + 1])

    def body(self, content):
        piece, pause_s = (100, 0.1) if self.fails("slow") else (PIECE, self.server.pause_s)
        if self.fails("truncated"):
            content, self.close_connection = content[: len(content) // 2], True
        for start in range(0, len(content), piece):
            self.wfile.write(content[start : start + piece])
            if self.server.closing.wait(pause_s):
                return


@contextmanager
def serve(folder, pause_s=0.0):
    """Serve a folder; yields the server: `.url`, `.asked` (the requests so far), `.pause_s` per 16 kB.

    `.faults`: {one of FAULTS, or an HTTP status: part of the addresses that it befalls, "" for all}; may change at
    any time.  `.times`: so many more faulty answers, then it serves well; -1: always.  `.page`: keys per listing.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    server.folder, server.pause_s, server.asked, server.daemon_threads = Path(folder), pause_s, [], True
    server.faults, server.times, server.page, server.closing = {}, -1, 1000, threading.Event()
    server.handle_error = lambda *_: None  # a client that was killed
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
