"""Mutated inputs against every reader: is what is wrong refused by name, and what is accepted right?

    python tests/fuzz.py                              200,000 inputs over all readers; the table, in Markdown
    python tests/fuzz.py --reader nifti --count 500   one reader
    python tests/fuzz.py --reader nifti --seed 123    one input again, what became of it, and where its files lie

Seed and reader determine an input.  It is one valid folder of `fuzz_readers` after one mutation, in a folder in
memory, read in a process with 2 GB and 10 s.  A mutation says what may become of it:

any      refused, or read as before, or as an independent reading of the same bytes has it
read     it hit pixels or geometry: refused, or as the independent reading has it; as before does not count
refuse   a contradiction: refused, or accepted with a remark

Outcomes: refused well (ValueError or OSError that names file or patient), refused badly (any other exception, or
none of the names in it), equal, different (accepted, and wrong), crashed or hung.  All but the first and the third
are findings; they are grouped by the mutated field or by the place that raised, with one seed each.
"""

import her2core  # noqa: F401, I001 - first: it pins the instruction set before numpy and torch are loaded

import argparse
import gzip
import io
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from fuzz_readers import NIFTI, READERS, zipped
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

LIMIT_S, LIMIT_BYTES, BATCH = 10, 2 << 30, 500
FORK = multiprocessing.get_context("fork")  # everything is imported once
OUTCOMES = ("refused well", "refused badly", "equal", "different", "crashed or hung")
FINDINGS = ("different", "crashed or hung", "refused badly")

# ------------------------------------------------------------------------------------------------- any bytes


def damaged(data, rng):
    """Bytes after one blow: (bytes, offset, what)."""
    kind = rng.integers(8)
    at, length = int(rng.integers(max(len(data), 1))), int(2 ** rng.uniform(0, 8))
    to = int(rng.integers(max(len(data), 1)))
    part, tail = data[at : at + length], data[at + length :]
    if kind < 3 and data:
        bits = bytes(b ^ (1 << int(rng.integers(8))) for b in data[at : at + 1 + kind])
        return data[:at] + bits + data[at + 1 + kind :], at, "bits flipped"
    new = {3: b"", 4: part + part, 5: b"\0" * len(part), 6: rng.bytes(len(part)), 7: data[to : to + length]}
    words = {3: "deleted", 4: "doubled", 5: "zeroed", 6: "random", 7: "copied from elsewhere"}
    kind = int(kind) if kind > 2 else 3
    return data[:at] + new[kind] + tail, at, f"bytes {words[kind]}"


def mutate_bytes(files, other, rng):
    name = str(rng.choice(sorted(files)))
    inside = name.endswith(".gz") and rng.random() < 0.5  # of the stream, or of the file
    data = gzip.decompress(files[name]) if inside else files[name]
    new, at, what = damaged(data, rng)
    if rng.random() < 0.2:
        new, what = data[:at], "cut off"
    where = place_of(name.removesuffix(".gz") if inside else name, data, at)
    return {name: gzip.compress(new, mtime=0) if inside else new}, f"{where}: damaged -> {what}", "any"


def place_of(name, data, at):
    """The field that an offset of a file lies in."""
    if name.endswith(".dcm"):
        starts = [(start, keyword) for start, keyword, _ in chunks(data) if start <= at]
        return starts[-1][1] if starts else "preamble"
    if name.endswith(".nii"):
        hit = [n for n, (_, offset) in NIFTI.fields.items() if offset <= at]
        return hit[-1] if at < 348 else "voxels"
    return re.sub(r"\d+", "#", Path(name).name)


def mutate_files(files, other, rng):
    """Whole files: lost, empty, exchanged, doubled, another patient's, or something else."""
    a, b = (str(n) for n in rng.choice(sorted(files), 2))
    ext = "".join(Path(a).suffixes)
    renamed = str(Path(a).with_name(f"x{rng.integers(99)}{ext}"))
    kinds = [
        ({a: None}, "lost", "any"),
        ({a: b""}, "empty", "any"),
        ({a: files[b], b: files[a]}, "exchanged", "any"),
        ({a: files[b]}, "overwritten by another", "any"),
        ({renamed: files[a]}, "doubled under another name", "any"),
        ({renamed: files[a], a: None}, "renamed", "any"),
        ({a: b"<html>404 Not Found</html>\n" * 20}, "a web page", "any"),
        ({renamed: b"%PDF-1.7\n"}, "a stray file beside", "any"),
        ({a: files[a] + files[b]}, "two in one", "any"),
    ]
    if other:
        names = sorted(set(files) & set(other)) or sorted(other)
        c = str(rng.choice(names))
        kinds += [({a: other[c]}, "another patient's instead", "refuse" if ext == ".dcm" else "any")] * 2
        kinds += [({renamed: other[c]}, "another patient's beside", "any")]
    changed, what, mode = kinds[rng.integers(len(kinds))]
    return changed, f"file {re.sub(r'[0-9a-f]*[0-9][0-9a-f]*', '#', a)}: {what}", mode


def nothing(files, other, rng):
    return {}, "nothing", "valid"


def bomb(files, other, rng):
    """A small file that claims or inflates to gigabytes: a header's matrix, or zeros behind a deflated data set."""
    name = str(rng.choice([n for n in sorted(files) if n.endswith((".nii", ".nii.gz", ".dcm"))]))
    if not name.endswith(".dcm"):
        data = gzip.decompress(files[name]) if name.endswith(".gz") else files[name]
        head = np.frombuffer(data[:348], NIFTI).copy()
        head["dim"][0, 1:4] = 30000, 30000, 9
        data = head.tobytes() + data[348:]
        return {name: gzip.compress(data, mtime=0) if name.endswith(".gz") else data}, "dim: gigabytes", "any"
    ds = pydicom.dcmread(io.BytesIO(files[name]))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    meta = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(meta, ds.file_meta)
    body = b"".join(chunk for _, _, chunk in chunks(files[name]) if chunk[:2] != b"\x02\0")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = deflate.compress(body) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = deflate.compress(bytes(1 << 24)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = b"\0" * 128 + b"DICM" + meta.getvalue() + start + zeros * 192 + deflate.flush()
    return {name: data}, "deflated: gigabytes", "any"


# -------------------------------------------------------------------------------------------------------- DICOM

IMAGE = """Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel PlanarConfiguration
PhotometricInterpretation NumberOfFrames RescaleSlope RescaleIntercept PixelData PixelSpacing
ImageOrientationPatient ImagePositionPatient TransferSyntaxUID SegmentationType SegmentationFractionalType
MaximumFractionalValue ReferencedSegmentNumber""".split()
PHASE = """TemporalPositionIdentifier TemporalPositionIndex TriggerTime AcquisitionTime
NumberOfTemporalPositions""".split()
# What an image of another kind or of somebody else says: element, value, and whether one file says it or all do
CONTRADICTIONS = r"""
ImageType DERIVED\SECONDARY\SUBTRACTION either, ImageType DERIVED\SECONDARY\PROJECTION_IMAGE either
ImageType DERIVED\SECONDARY\MOSAIC either, ImageType ORIGINAL\PRIMARY\PHASE_MAP one
ImageType ORIGINAL\PRIMARY\DIFFUSION one, ImageType ORIGINAL\PRIMARY\ASL one, ASLContext LABEL one
EchoTime 80 one, EchoNumbers 2 one, ScanningSequence EP one, DiffusionBValue 800 either
Modality CT either, Modality PT one, PatientID P2 one, PatientName Other^ one, StudyInstanceUID 1.2.9 one
SeriesInstanceUID 1.2.9 one, SOPInstanceUID 1.2.9 all, FrameOfReferenceUID 1.2.9 one
PhotometricInterpretation MONOCHROME1 one, RescaleSlope 0 either, RescaleSlope -1 either, HighBit 3 either
BitsStored 0 all, PixelRepresentation 2 all, PixelSpacing 1e-6\1e-6 all, PixelSpacing 9e5\9e5 all
"""
CONTRADICTIONS = [part.split() for part in re.split(r"[,\n]", CONTRADICTIONS) if part]
TEXTS = rb"nan inf -1 0 1e308 1e-308 99999999999 1\2\3 \ abc 1,5 0x10 1_0 2.5.8 1e5 0.0000001 -0".split()
TEXTS += [b"", b" ", b"\xff\xfe", b"\0\0", b"A" * 70000, b"1\n2"]
WORDS = (0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 32, 64, 255, 256, 32767, 32768, 65535)
LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"SQ", b"UC", b"UR", b"UT", b"UN")


def chunks(data):
    """Offset, keyword and bytes of each element at the top of an explicit little-endian file."""
    at, found = 132, []
    while at + 8 <= len(data):
        tag = Tag(*struct.unpack("<HH", data[at : at + 4]))
        wide = data[at + 4 : at + 6] in LONG
        length = int.from_bytes(data[at + 8 : at + 12] if wide else data[at + 6 : at + 8], "little")
        end = min(at + (12 if wide else 8) + length, len(data))
        found.append((at, keyword_for_tag(tag) or "private", data[at:end]))
        at = end
    return found


def dicom_files(files):
    return [n for n in sorted(files) if n.endswith(".dcm") and not n.startswith("seg")]


def mutate_elements(files, other, rng):
    """Elements lost, doubled, out of order, of another VR or length, in one file or in all."""
    names, what = dicom_files(files), str(rng.choice(["lost", "doubled", "moved", "exchanged", "VR", "length"]))
    names = names if rng.random() < 0.4 else [str(rng.choice(names))]
    parts = [(k, c) for _, k, c in chunks(files[names[0]])]
    wanted = [i for i, (k, _) in enumerate(parts) if k in (*IMAGE, *PHASE)]
    i = int(rng.choice(wanted)) if rng.random() < 0.5 else int(rng.integers(len(parts)))
    j, count = int(rng.integers(len(parts))), rng.bytes(2)
    vr = rng.choice([b"UN", b"OB", b"DS", b"US", b"SS", b"LO", b"SQ"])
    changed = {}
    for name in names:
        c = [part for _, _, part in chunks(files[name])]
        if len(c) != len(parts):
            continue
        one = c[i]
        other_forms = {"lost": b"", "doubled": one + one, "VR": one[:4] + vr + one[6:]}
        c[i] = (other_forms | {"length": one[:6] + count + one[8:]}).get(what, one)
        if what == "moved":
            c.insert(j, c.pop(i))
        if what == "exchanged":
            c[i], c[j] = c[j], c[i]
        changed[name] = files[name][:132] + b"".join(c)
    mode = "read" if parts[i][0] in IMAGE and what == "length" else "any"
    return changed, f"{parts[i][0]}: {what} -> {scope_of(names)}", mode


def scope_of(names):
    return "all files" if len(names) > 1 else "one file"


def places(ds):
    """Each element of a dataset and of the items of its sequences: (dataset, tag)."""
    for tag in list(ds.keys()):
        yield ds, tag
        if ds.get_item(tag).VR == "SQ":
            for item in ds[tag].value:
                yield from places(item)


def put(ds, tag, raw):
    vr = "US" if (vr := dictionary_VR(tag)) == "US or SS" else vr[:2]
    raw += (b"\0" if vr in ("UI", "OB", "OW") else b" ") * (len(raw) % 2)
    ds._dict[Tag(tag)] = RawDataElement(Tag(tag), vr, len(raw), raw, 0, False, True)


def nasty(vr, raw, rng):
    """Another value for an element, encoded."""
    if vr in ("US", "SS", "UL", "SL"):
        size = 2 if vr in ("US", "SS") else 4
        now = int.from_bytes(raw[:size], "little")
        value = int(rng.choice([*WORDS, now + 1, max(now - 1, 0), 2 * now])) % 2 ** (8 * size)
        return [value.to_bytes(size, "little"), b"", raw[:1], raw * 2][rng.choice(4, p=[0.85, 0.05, 0.05, 0.05])]
    if vr in ("FD", "FL"):
        value = float(rng.choice([np.nan, np.inf, 0.0, -1.0, 1e30, 1e-30, 2.5]))
        return struct.pack("<d" if vr == "FD" else "<f", value)
    if vr in ("OB", "OW"):
        return [raw[: len(raw) // 2], raw + raw, b"", rng.bytes(len(raw)), raw[::-1]][rng.integers(5)]
    parts = raw.split(b"\\")
    k, scale = int(rng.integers(len(parts))), float(rng.choice([-1, 0.5, 2, 10, 1.001]))
    try:
        scaled = b"%.8g" % (float(parts[k]) * scale)
    except ValueError:
        scaled = b"1"
    parts[k] = scaled if rng.random() < 0.3 else TEXTS[rng.integers(len(TEXTS))]
    return b"\\".join(parts)


def edited(data, keyword, index, change):
    """A file after `change(dataset, tag, raw)` on the index-th element of a keyword, at the top where absent."""
    ds, tag = pydicom.dcmread(io.BytesIO(data)), Tag(keyword)
    homes = [place for d in (ds.file_meta, ds) for place, t in places(d) if t == tag]
    place = homes[index % len(homes)] if homes else ds
    element = place.get_item(tag)
    raw = b"" if element is None else element.value if element.is_raw else str(element.value).strip("[]").encode()
    change(place, tag, raw if isinstance(raw, bytes) else b"")
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=False)
    return out.getvalue()


def mutate_values(files, other, rng):
    """An element of one file or of all takes a nasty value, or a frame's is lost."""
    names = dicom_files(files)
    here = sorted({keyword_for_tag(t) for _, t in places(pydicom.dcmread(io.BytesIO(files[names[0]])))} - {""})
    pool = [k for k in (*IMAGE, *PHASE) if k in here] if rng.random() < 0.7 else here
    pool = pool if rng.random() < 0.97 else list(IMAGE)
    keyword, index, seed = str(rng.choice(pool)), int(rng.integers(1 << 16)), int(rng.integers(1 << 30))
    names = names if rng.random() < 0.4 else [str(rng.choice(names))]
    lost, vr = rng.random() < 0.1, dictionary_VR(keyword)[:2]

    def change(ds, tag, raw):
        if lost or vr == "SQ":
            ds._dict.pop(tag, None)
        else:
            new.append(nasty(vr, raw, np.random.default_rng(seed)))
            put(ds, tag, new[-1])

    new = [b""]
    changed = {n: edited(files[n], keyword, index, change) for n in names}
    what = "lost" if lost or vr == "SQ" else "another value"
    mode = "read" if keyword in IMAGE and new[-1].strip() else "any"  # one that is lost or blank may have a default
    return changed, f"{keyword}: {what} -> {new[-1][:20]!r}, {scope_of(names)}", mode


def contradict(files, other, rng):
    """A file, or all, says that it is something else."""
    names = dicom_files(files)
    keyword, value, scope = CONTRADICTIONS[rng.integers(len(CONTRADICTIONS))]
    if len(names) < 2:  # nothing beside it to contradict
        alone = [c for c in CONTRADICTIONS if c[2] != "one" and c[0] != "SOPInstanceUID"]
        keyword, value, scope = alone[rng.integers(len(alone))]
    everywhere = scope == "all" or scope == "either" and rng.random() < 0.5
    names = names if everywhere else [str(rng.choice(names))]
    pack = {"US": lambda v: struct.pack("<H", int(v)), "FD": lambda v: struct.pack("<d", float(v))}
    raw = pack.get(dictionary_VR(keyword)[:2], lambda v: v.replace("_", " ").encode())(value)
    changed = {n: edited(files[n], keyword, 0, lambda ds, tag, _: put(ds, tag, raw)) for n in names}
    return changed, f"{keyword} {value} -> {scope_of(names)}", "refuse"


def strange_seg(files, other, rng):
    """The mask of a case belongs to somebody else."""
    keyword = str(rng.choice(["PatientID", "FrameOfReferenceUID", "StudyInstanceUID"]))
    change = lambda ds, tag, _: put(ds, tag, b"1.2.9")  # noqa: E731
    return {"seg.dcm": edited(files["seg.dcm"], keyword, 0, change)}, f"seg.dcm: another's {keyword}", "refuse"


# -------------------------------------------------------------------------------------------------------- NIfTI

NUMBERS = (0, 1, -1, 2, 3, 4, 7, 8, 16, 64, 127, 128, 256, 352, 512, 1024, 32767, np.nan, np.inf, 1e30, 1e-30, 0.5)
HARMLESS = """data_type db_name extents session_error regular cal_max cal_min toffset glmax glmin descrip aux_file
intent_name intent_p intent_code slice_start slice_end slice_code slice_duration""".split()


def mutate_header(files, other, rng):
    """A field of a NIfTI header, in one file or in all, takes another value."""
    names = sorted(n for n in files if ".nii" in n)
    mask, one = [n for n in names if n.startswith("mask")], [str(rng.choice(names))]
    names, scope = ((names, "all"), (one, "one"), (mask, "mask"))[rng.choice(3, p=[0.3, 0.5, 0.2])]
    key, i, value = str(rng.choice(NIFTI.names)), int(rng.integers(12)), float(rng.choice(NUMBERS))
    drawn, relative, changed = rng.bytes(4), rng.random() < 0.3, {}
    for name in names:
        data = gzip.decompress(files[name]) if name.endswith(".gz") else files[name]
        head = np.frombuffer(data[:348], NIFTI).copy()
        spot = head[key].reshape(-1)
        if NIFTI[key].kind == "S":
            spot[0] = drawn
        elif spot.dtype.kind == "f":
            spot[i % spot.size] = spot[i % spot.size] * 2 if relative else value
        else:
            now = int(spot[i % spot.size])
            whole = now + 1 if relative else int(np.nan_to_num(value, posinf=-32768))
            spot[i % spot.size] = np.array(whole % 2**63).astype(spot.dtype)
        head[key] = spot.reshape(head[key].shape)
        data = head.tobytes() + data[348:]
        changed[name] = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
    now = head[key].ravel().tolist()
    return changed, f"{key}: another value -> {now}, {scope}", "any" if key in HARMLESS else "read"


def shift_mask(files, other, rng):
    """The mask's header disagrees with the images', in a way that only the affine shows."""
    name = next(n for n in files if n.startswith("mask"))
    data = gzip.decompress(files[name]) if name.endswith(".gz") else files[name]
    head = np.frombuffer(data[:348], NIFTI).copy()
    rows = head["srow"].reshape(3, 4)
    axis = int(rng.integers(3))
    rows[axis] *= -1 if rng.random() < 0.5 else 1
    rows[axis, 3] += float(rng.choice([0, 3, -40]))
    same = np.array_equal(rows.ravel(), np.frombuffer(data[:348], NIFTI)["srow"][0])
    head["srow"] = rows.reshape(1, 12)
    data = head.tobytes() + data[348:]
    data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
    return {name: data}, "mask: its affine is another", "any" if same else "read"


# --------------------------------------------------------------------------------------- text, workbooks, arrays

TOKENS = """nan NaN inf -1 0 1 1e999 1e-5 null true yes no ~ .inf 0x10 1_000 007 １ é " ' [ { ] } *a &a ,,, : - #
!!python/object:os.system 1.0 0.5 2 99 -0 "1" [1,2] {a:b} =1+1 99999999999999999999 2026-01-01""".split()
TOKENS += ["", "\0", "\n", "x" * 9999]
LAUGHS = [b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)]
BOMBS = {"brackets": b"[" * 5000, "braces": b'{"a":' * 5000, "aliases": b"".join([b"a: &a [x,x]\n", *LAUGHS])}


def spoilt_text(name, text, rng):
    """Text after one change of a token, a line or the encoding: (bytes, what)."""
    kind, eol = rng.random(), text.splitlines(keepends=True)
    i, j = (int(k) for k in rng.integers(len(eol), size=2))
    if kind < 0.7:
        parts = re.findall(r"[\w.+-]+|\s+|[^\w\s]", text)
        k = int(rng.choice([n for n, part in enumerate(parts) if part.strip()]))
        where = field_of(name, "".join(parts[:k]))
        new = str(rng.choice(parts)) if rng.random() < 0.25 else TOKENS[rng.integers(len(TOKENS))]
        what = f"{where}: {'value' if parts[k][0].isalnum() else 'punctuation'} -> {new[:12]!r}"
        parts[k] = new
        return "".join(parts).encode(), what
    if kind < 0.9:
        lines = [eol[:i] + eol[i + 1 :], eol[: i + 1] + eol[i:], eol[:j] + [eol[i]] + eol[j:], eol[::-1]]
        which = int(rng.integers(4))
        return "".join(lines[which]).encode(), f"line {('lost', 'doubled', 'repeated elsewhere', 'order')[which]}"
    raw, marked = text.encode(), text.encode("utf-8-sig")
    forms = {
        "UTF-16": text.encode("utf-16"),
        "BOM": marked,
        "CRLF": raw.replace(b"\n", b"\r\n"),
        "NUL": raw + b"\0",
    }
    forms |= {"latin-1": b"\xe9" + raw, "semicolons": raw.replace(b",", b";"), "tabs": raw.replace(b",", b"\t")}
    chosen = str(rng.choice([*forms, *BOMBS]))
    return (forms | BOMBS)[chosen], f"encoding or bomb -> {chosen}"


def field_of(name, before):
    """The column of a CSV, or the key of JSON and YAML, that stands where the text `before` ends."""
    if name.endswith(".csv"):
        header = before.split("\n")[0].split(",")
        column = before.rpartition("\n")[2].count(",")
        return f"column {header[column]}" if "\n" in before and column < len(header) else "header"
    keys = re.findall(r"([\w.]+)\"?\s*:", before)
    return re.sub(r"\d+", "#", keys[-1]) if keys else "beginning"


def mutate_text(files, other, rng):
    name = str(rng.choice([n for n in sorted(files) if n.endswith((".csv", ".json", ".yaml"))]))
    data, what = spoilt_text(name, files[name].decode(), rng)
    return {name: data}, f"{Path(name).name}: {what}", "any"


def mutate_members(files, other, rng):
    """A member of a workbook, or of torch's zip: lost, doubled, cut, another cell, entities without end, huge."""
    (name,) = (n for n in files if n.endswith((".xlsx", ".pth")))
    with zipfile.ZipFile(io.BytesIO(files[name])) as book:
        members = [(n, book.read(n)) for n in book.namelist()]
    likely = [i for i, (n, _) in enumerate(members) if "sheet2" in n] if rng.random() < 0.6 else []
    i, kind = int(rng.choice(likely or len(members))), rng.choice(7, p=[0.15, 0.1, 0.15, 0.45, 0.1, 0.045, 0.005])
    member, content = members[i]
    what = ("lost", "doubled", "cut off", "another text", "bytes", "entities", "a far cell")[kind]
    if kind == 0:
        del members[i]
    elif kind == 1:
        members.append((member, content[: len(content) // 2]))
    else:
        texts = [m.span(1) for m in re.finditer(rb">([^<>]+)<", content)] or [(0, len(content))]
        a, b = texts[rng.integers(len(texts))]
        token = TOKENS[rng.integers(len(TOKENS))].encode()
        bomb = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">' + b"".join(
            b'<!ENTITY %c "%s">' % (98 + k, b"&%c;" % (97 + k) * 10) for k in range(8)
        )
        content = {
            2: content[: int(rng.integers(len(content) + 1))],
            3: content[:a] + token + content[b:],
            4: damaged(content, rng)[0],
            5: bomb + b"]>" + content[:a] + b"&i;" + content[b:],
            6: re.sub(rb'r="([A-Z]*)[89]"', rb'r="\g<1>1048576"', content).replace(b'r="AL', b'r="XFD'),
        }[kind]
        members[i] = (member, content)
    with warnings.catch_warnings(action="ignore"):
        return {name: zipped(members)}, f"{Path(member).name}: damaged -> {what}", "any"


def mutate_json_header(files, other, rng):
    """The header of safetensors, which is JSON with its length before it."""
    name = str(rng.choice([n for n in sorted(files) if n.endswith(".safetensors")]))
    size = int.from_bytes(files[name][:8], "little")
    text, what = spoilt_text("x.json", files[name][8 : 8 + size].decode(), rng)
    text = text if rng.random() < 0.2 else text[:size].ljust(size)
    data = len(text).to_bytes(8, "little") + text + files[name][8 + size :]
    return {name: data}, f"header, {what}", "any"


DICOM = (mutate_values,) * 5 + (mutate_elements,) * 2 + (mutate_bytes,) * 2 + (mutate_files,)
TEXT = (mutate_text,) * 7 + (mutate_bytes, mutate_files)
HEADERS = (mutate_json_header, *(mutate_bytes,) * 3, mutate_files)
MUTATIONS = {
    "dicom": (*DICOM, contradict, contradict, mutate_files),
    "enhanced": (*DICOM, contradict),
    "seg": DICOM,
    "nifti": (*(mutate_header,) * 5, shift_mask, mutate_bytes, mutate_bytes, mutate_files),
    "case": (mutate_text,),
    "ambl": (*(mutate_members,) * 7, mutate_bytes, mutate_files),
    "checkpoint": HEADERS,
    "weights": HEADERS,
    "pretrained": (*HEADERS, mutate_members),
    "prepared": (mutate_text, mutate_bytes, mutate_bytes, mutate_files),
}


# -------------------------------------------------------------------------------------------------- one input


def same(a, b, loose=None):
    """Whether two values are equal: NaN is NaN; numbers to four digits, origins to the 0.1 mm that are granted."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], 0.1 if k == "origin" else None) for k in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if a is None or b is None or isinstance(a, str | bool) or isinstance(b, str | bool):
        return type(a) is type(b) and a == b
    if any(isinstance(v, list | tuple) and not all(isinstance(x, int | float) for x in v) for v in (a, b)):
        return len(a) == len(b) and all(map(same, a, b))
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype.kind not in "iufb" or a.shape != b.shape:
        return a.shape == b.shape and np.array_equal(a, b)
    close = partial(np.allclose, rtol=1e-4, atol=1e-3 if loose is None else loose, equal_nan=True)
    return np.array_equal(a, b) or close(a.astype(float), b.astype(float))


@dataclass
class Bench:
    """A reader, its samples, the folder where they are read, and what each holds by `right`, else by `read`."""

    name: str
    folder: Path
    samples: dict = field(default_factory=dict)
    truth: dict = field(default_factory=dict)
    faithful: dict = field(default_factory=dict)  # whether the reader has the truth of the sample as it is
    there: dict = field(default_factory=dict)
    names: set = field(default_factory=set)

    def __post_init__(self):
        self.reader = READERS[self.name]
        self.samples = self.reader.samples()
        for name, files in self.samples.items():
            self.lay(files)
            right = self.right()
            try:
                found = self.reader.read(self.folder)
            except Exception:  # a valid sample is refused: the mutation `nothing` tells
                found = None
            self.truth[name] = right[0] if right else found
            self.faithful[name] = any(same(found, truth) for truth in right or [found])

    def lay(self, files):
        """Make the folder hold these files, writing only what differs."""
        for name in self.there.keys() - files.keys():
            (self.folder / name).unlink()
        for name, content in files.items():
            if self.there.get(name) != content:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(content)
        self.there = dict(files)

    def right(self):
        """What an independent reading may give; nothing where it fails."""
        try:
            with warnings.catch_warnings(action="ignore"):
                return self.reader.right(self.folder) if self.reader.right else []
        except Exception:  # a reference that refuses: so should the reader
            return []

    def input(self, seed):
        """The sample and the mutation of a seed: sample, files, cause, mode."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        names = [n for n in self.samples if n != "other"]
        name = str(rng.choice(names))
        files, other = self.samples[name], self.samples.get("other")
        mutations = (nothing,) if rng.random() < 0.005 else MUTATIONS.get(self.name, TEXT)
        if self.name in ("dicom", "enhanced", "seg", "nifti") and rng.random() < 0.0005:
            mutations = (bomb,)
        if self.name == "case" and name == "DICOM" and rng.random() < 0.2:
            mutations = (strange_seg, mutate_files)
        for attempts in range(9, -1, -1):
            try:
                changed, cause, mode = mutations[rng.integers(len(mutations))](files, other, rng)
                break
            except (ValueError, AttributeError, TypeError, struct.error):  # pydicom does not write every nonsense
                if not attempts:
                    raise
        mutated = {k: v for k, v in (files | changed).items() if v is not None}
        return name, mutated, cause, mode

    def outcome(self, mode, truth):
        """Read what lies in the folder: (outcome, what is known of it)."""
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                value = self.reader.read(self.folder)
        except Exception as error:
            if ran_out(error):
                return "crashed or hung", f"MemoryError {raised_in(error)}"
            return self.refusal(error, mode)
        remarks = [str(w.message) for w in said if "her2core" in w.filename or str(self.folder) in str(w.message)]
        if mode == "refuse":
            return ("equal", "with a remark") if remarks else ("different", "accepted without a remark")
        if mode != "read" and same(value, truth):
            return "equal", ""
        right = self.right()
        if any(same(value, r) for r in right):
            return "equal", ""
        if not self.reader.right:
            return "different", "not as before"
        return "different", "not the independent reading" if right else "the independent reading refuses"

    def refusal(self, error, mode):
        """How well an error says what is wrong."""
        text, names = str(error), [self.folder.name, *self.names]
        place = f"{type(error).__name__} {raised_in(error)}"
        if mode == "valid":
            return "refused badly", f"valid input: {text[:150]}"
        if not isinstance(error, ValueError | OSError):
            return "refused badly", place
        if not any(name in text for name in names):
            return "refused badly", f"{place}, names neither file nor patient"
        if re.search(r"(\(\)|\(None\)|:\))$", text):
            return "refused badly", f"{place}, ends without a reason"
        return "refused well", text

    def run(self, seed):
        """(outcome, root cause, one line) of a seed."""
        sample, files, cause, mode = self.input(seed)
        self.lay(files)
        self.names = {Path(n).name for n in (*files, *self.samples[sample])}
        outcome, what = self.outcome(mode, self.truth[sample])
        line = f"{sample}; {cause}; {what}".replace(f"{self.folder.parent}/", "")
        if outcome == "different" and not self.faithful[sample]:
            cause = f"sample {sample}: wrong without any mutation"
        root = what if outcome in ("refused badly", "crashed or hung") else cause.partition(" -> ")[0]
        return outcome, root, line


def ran_out(error):
    """Whether memory was the reason, however the error was translated."""
    while error:
        if isinstance(error, MemoryError) or re.search("bad_?alloc|allocate", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def raised_in(error):
    """The innermost function of her2core in a traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}her2core{os.sep}" in f.filename]
    return f"in {Path(frames[-1].filename).stem}.{frames[-1].name}" if frames else "outside her2core"


# -------------------------------------------------------------------------------------------------- processes


def prepare_process(folder, quiet=True):
    """One thread, no chatter of C++."""
    folder.mkdir(parents=True, exist_ok=True)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    torch.set_num_threads(1)
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    if quiet:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def limit_memory():
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES,) * 2)


def work(name, seeds, home, pipe):
    """A process: all seeds of one batch, an answer for each."""
    prepare_process(home / str(os.getpid()) / "P1")
    bench = Bench(name, home / str(os.getpid()) / "P1")
    limit_memory()
    pipe.send(None)
    for seed in seeds:
        pipe.send((seed, *bench.run(seed)))
    shutil.rmtree(home / str(os.getpid()))


@dataclass
class Batch:
    """Seeds of a reader in a process of their own; `seeds` begins with the one that is being read."""

    name: str
    seeds: range
    home: Path
    over: bool = False

    def start(self):
        self.pipe, end = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=work, args=(self.name, self.seeds, self.home, end), daemon=True)
        self.process.start()
        end.close()
        self.deadline = time.monotonic() + 60 + LIMIT_S  # to make the samples; then it says that it begins
        return self

    def answers(self):
        """What has come since the last look; a process that died or is late answers for the seed it was at."""
        try:
            while self.pipe.poll():
                found, self.deadline = self.pipe.recv(), time.monotonic() + LIMIT_S
                if found:
                    self.seeds = self.seeds[1:]
                    yield found
        except EOFError:
            self.process.join()
            self.over = True
            if self.seeds:
                yield self.lost(f"crashed (exit code {self.process.exitcode})")
            return
        if self.seeds and time.monotonic() > self.deadline:
            self.process.kill()
            self.process.join()
            self.over = True
            yield self.lost(f"hung, more than {LIMIT_S} s")

    def lost(self, what):
        seed, self.seeds = self.seeds[0], self.seeds[1:]
        return seed, "crashed or hung", what, "see --seed"


def batches(names, count, first, home):
    """The seeds of all readers, in batches; each reader gets its share, readers take turns."""
    shares = sum(READERS[n].share for n in names)
    ends = {n: first + max(count * READERS[n].share // shares, 1) for n in names}
    starts = range(first, max(ends.values()), BATCH)
    return deque(Batch(n, range(s, min(s + BATCH, ends[n])), home) for s in starts for n in names if s < ends[n])


def fuzz(names, count, jobs, first=0, until=np.inf):
    """→ Counter of (reader, outcome), {(outcome, reader, root cause): [count, seed, line]}, seconds by reader."""
    home = Path(f"/dev/shm/fuzz-{os.getpid()}")
    counts, causes, seconds, running = Counter(), {}, Counter(), []
    todo = batches(names, count, first, home)
    try:
        while running or todo and time.monotonic() < until:
            while todo and len(running) < jobs and time.monotonic() < until:
                running.append((todo.popleft().start(), time.monotonic()))
            wait([batch.pipe for batch, _ in running], timeout=1)
            for batch, begun in list(running):
                for seed, outcome, cause, line in batch.answers():
                    counts[batch.name, outcome] += 1
                    entry = causes.setdefault((outcome, batch.name, cause), [0, seed, line])
                    entry[0] += 1
                if batch.over:
                    running.remove((batch, begun))
                    seconds[batch.name] += time.monotonic() - begun
                    if batch.seeds:
                        todo.appendleft(Batch(batch.name, batch.seeds, home))
    finally:
        for batch, _ in running:
            batch.process.kill()
        shutil.rmtree(home, ignore_errors=True)
    return counts, {k: v for k, v in causes.items() if k[0] in FINDINGS}, seconds


def table(counts, causes, seconds):
    """The two tables in Markdown."""
    names = [n for n in READERS if seconds[n]]
    lines = [f"| reader | runs | {' | '.join(OUTCOMES)} | per s and core |", "|---" * (len(OUTCOMES) + 3) + "|"]
    for name in [*names, "all"]:
        found = [sum(counts[n, o] for n in (names if name == "all" else [name])) for o in OUTCOMES]
        spent = sum(seconds.values()) if name == "all" else seconds[name]
        lines.append(f"| {name} | {sum(found)} | {' | '.join(map(str, found))} | {sum(found) / spent:.0f} |")
    lines += ["", "| outcome | reader | root cause | count | seed | for example |", "|---" * 6 + "|"]
    order = sorted(causes.items(), key=lambda e: (FINDINGS.index(e[0][0]), e[0][1], -e[1][0]))
    lines += [f"| {' | '.join(key)} | {n} | {seed} | {_cell(line)} |" for key, (n, seed, line) in order]
    return "\n".join(lines)


def _cell(text):
    return re.sub(r"[\x00-\x1f|]", " ", text)[:200].strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=[*READERS, "all"], default="all")
    parser.add_argument("--count", type=int, default=200_000, help="inputs in all")
    parser.add_argument("--first", type=int, default=0, help="the first seed of each reader")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--minutes", type=float, default=np.inf, help="begin nothing new after that")
    parser.add_argument("--seed", type=int, help="only this input, of --reader")
    given = parser.parse_args()
    if given.seed is not None:
        home = Path(f"/dev/shm/fuzz-{os.getpid()}/P1")
        prepare_process(home, quiet=False)
        print(home, "\n".join(Bench(given.reader, home).run(given.seed)), sep="\n")
        return
    names, until = [*READERS] if given.reader == "all" else [given.reader], time.monotonic() + 60 * given.minutes
    counts, causes, seconds = fuzz(names, given.count, given.jobs, given.first, until)
    print(table(counts, causes, seconds))
    sys.exit(bool(causes))


if __name__ == "__main__":
    main()
