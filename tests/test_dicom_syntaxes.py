"""Compressed and deflated files: the same voxels or a message with the remedy, and no more memory than pixels."""

import struct
import zlib
from dataclasses import replace

import gdcm
import numpy as np
import pydicom
import pytest
from dicom_samples import edit, put, series, write, write_enhanced
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSNearLossless,
)

from her2core.formats.dicom import read_dce

SYNTAXES = {
    "JPEG lossless, SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG lossless, process 14": gdcm.TransferSyntax.JPEGLosslessProcess14,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "JPEG 2000, lossy allowed": gdcm.TransferSyntax.JPEG2000,
    "RLE": gdcm.TransferSyntax.RLELossless,
}


def compress(path, syntax):
    """GDCM's encoding of a file in place."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(SYNTAXES[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def sample(dtype, bits, shape=(2, 3, 16, 24)):
    data = series(shape=shape, dtype=dtype)
    least = -(1 << (bits - 1)) if dtype == np.int16 else 0
    array = np.random.default_rng(1).integers(least, least + (1 << bits), shape).astype(dtype)
    return replace(data, array=array)


@pytest.mark.parametrize("dtype, bits", [(np.uint16, 16), (np.uint16, 12), (np.int16, 16), (np.int16, 12)])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_slices_have_the_voxels_that_were_encoded(tmp_path, syntax, dtype, bits):
    data = sample(dtype, bits)
    folder = write(tmp_path / "dce", data, bits_stored=bits)
    for path in folder.iterdir():
        compress(path, syntax)
    found = read_dce(folder).array
    assert found.dtype == dtype and np.array_equal(found, data.array)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_enhanced_frames_have_the_voxels_that_were_encoded(tmp_path, syntax, dtype):
    data = sample(dtype, 16)
    write_enhanced(tmp_path / "e.dcm", data, list(np.ndindex(2, 3)))
    ds = pydicom.dcmread(tmp_path / "e.dcm")
    compress(tmp_path / "e.dcm", syntax)
    coded = pydicom.dcmread(tmp_path / "e.dcm")  # GDCM changes the frames' groups, too
    ds.file_meta.TransferSyntaxUID = coded.file_meta.TransferSyntaxUID
    ds["PixelData"] = coded["PixelData"]
    ds.save_as(tmp_path / "e.dcm")
    found = read_dce(tmp_path).array
    assert found.dtype == dtype and np.array_equal(found, data.array)


def encapsulate(folder, syntax, stream):
    """Puts a stream of bytes for the pixels of every file."""
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.file_meta.TransferSyntaxUID = syntax
        ds["PixelData"].VR = "OB"
        ds.PixelData = pydicom.encaps.encapsulate([stream])
        ds["PixelData"].is_undefined_length = True
        ds.save_as(path)
    return folder


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless])
def test_a_compression_that_changes_intensities_is_refused(tmp_path, syntax):
    folder = encapsulate(write(tmp_path / "dce"), syntax, b"\xff\xd8\xff\xd9")
    with pytest.raises(ValueError, match="dcm: JPEG.*, expected intensities as measured; export it without loss"):
        read_dce(folder)


@pytest.mark.parametrize("compressed", [True, False])
def test_what_was_once_compressed_with_loss_is_read_with_a_remark(tmp_path, compressed):
    data = sample(np.uint16, 16)
    folder = write(tmp_path / "dce", data)
    edit(folder, put(LossyImageCompression="01"), phase=1)
    for path in folder.iterdir() if compressed else ():
        compress(path, "JPEG 2000, lossy allowed")
    with pytest.warns(UserWarning, match="dcm was once compressed with loss"):
        assert np.array_equal(read_dce(folder).array, data.array)


def siz(rows, columns):
    """How a JPEG 2000 stream begins."""
    return b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">4I", columns, rows, 0, 0) + b"\0" * 40


def test_a_missing_decoder_is_named_with_its_remedy(tmp_path):
    folder = encapsulate(write(tmp_path / "dce"), HTJ2KLossless, siz(6, 8))
    with pytest.raises(
        ValueError,
        match="dcm: PixelData .*: Unable to decompress 'High-Throughput JPEG 2000.*missing dependencies: "
        "pylibjpeg - requires pylibjpeg.*, expected pixels as the header describes them; install python-gdcm",
    ):
        read_dce(folder)


@pytest.mark.parametrize("rows, columns", [(60000, 60000), (16, 25), (15, 24)])
@pytest.mark.parametrize("syntax", ["JPEG 2000", "JPEG-LS", "JPEG lossless, SV1"])
def test_a_stream_of_another_size_than_the_header_says_is_refused_before_it_is_decoded(
    tmp_path, syntax, rows, columns
):
    folder = write(tmp_path / "dce", series(shape=(1, 1, 16, 24)))
    path = next(folder.iterdir())
    compress(path, syntax)
    content = bytearray(path.read_bytes())
    if syntax == "JPEG 2000":
        struct.pack_into(">2I", content, content.index(b"\xff\x4f\xff\x51") + 8, columns, rows)
    else:
        struct.pack_into(
            ">2H", content, content.index(b"\xff\xf7" if "LS" in syntax else b"\xff\xc3") + 5, rows, columns
        )
    path.write_bytes(content)
    found = rf"dcm: PixelData cannot be decoded: a compressed frame of \({rows}, {columns}\) rows"
    with pytest.raises(ValueError, match=found):
        read_dce(folder)


def test_more_than_memory_holds_is_refused_however_few_bytes_claim_it(tmp_path):
    write_enhanced(tmp_path / "e.dcm", series(shape=(2, 40, 6, 8)), list(np.ndindex(2, 40)))
    ds = pydicom.dcmread(tmp_path / "e.dcm")
    ds.compress(pydicom.uid.RLELossless)
    ds.Rows = ds.Columns = 4096
    ds.save_as(tmp_path / "e.dcm")
    with pytest.raises(
        ValueError, match="e.dcm: 2684354560 bytes when decoded, expected at most 2147483648 in a file"
    ):
        read_dce(tmp_path)


# ------------------------------------------------------------------------------------------------------- deflated


def deflate(path, change=lambda body: body):
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(path)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    body = change(zlib.decompress(content[start:], -zlib.MAX_WBITS))
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(content[:start] + packer.compress(body) + packer.flush())


def test_a_deflated_series_is_read(tmp_path):
    folder = write(tmp_path / "dce")
    for path in folder.iterdir():
        deflate(path)
    assert np.array_equal(read_dce(folder).array, series().array)


def test_a_deflated_enhanced_file_is_read(tmp_path):
    write_enhanced(tmp_path / "e.dcm", series(), list(np.ndindex(3, 5)))
    deflate(tmp_path / "e.dcm")
    assert np.array_equal(read_dce(tmp_path).array, series().array)


def test_a_deflated_file_may_not_grow_without_limit(tmp_path):
    path = next(write(tmp_path / "dce", series(shape=(1, 1, 6, 8))).iterdir())
    deflate(path, lambda body: body + b"\xe1\x7f\x01\x10OB\0\0" + struct.pack("<I", 1 << 26) + bytes(1 << 26))
    assert path.stat().st_size < 1 << 19
    with pytest.raises(
        ValueError, match="dcm: deflated, and longer than 64 MiB when inflated, expected a readable"
    ):
        read_dce(tmp_path / "dce")


def test_a_deflated_file_of_millions_of_empty_elements_is_refused_at_the_second(tmp_path):
    path = next(write(tmp_path / "dce", series(shape=(1, 1, 6, 8))).iterdir())
    deflate(path, lambda body: body[:8] + bytes(1 << 25))
    with pytest.raises(ValueError, match=r"dcm: element \(0000,0000\) after \(0008,00.*, expected ascending ones"):
        read_dce(tmp_path / "dce")


def test_a_deflated_file_that_is_damaged_is_refused_by_name(tmp_path):
    path = next(write(tmp_path / "dce", series(shape=(1, 1, 6, 8))).iterdir())
    deflate(path)
    path.write_bytes(path.read_bytes()[:-200] + b"\xff" * 200)
    with pytest.raises(ValueError, match=f"{path.name}: "):
        read_dce(tmp_path / "dce")
