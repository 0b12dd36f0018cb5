"""Small DICOM series and masks that the tests write, edit and read back."""

from dataclasses import replace

import numpy as np
import pydicom
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

from her2core.formats.dicom_write import Acquisition, write_dce
from her2core.formats.volume import DceSeries, Geometry

NAN = float("nan")
TIMES = (0.0, 92.5, 180.0)
SHAPE = (3, 5, 6, 8)  # (T, Z, Y, X)
ACQUISITION = Acquisition(
    series_description="ISPY2: VOLSER: uni-lateral cropped: original DCE",
    manufacturer="GE MEDICAL SYSTEMS",
    field_strength_T=1.5,
    tr_ms=5.3,
    te_ms=2.4,
    flip_deg=10,
)


def right_handed(along_row, down_column):
    """Direction columns (z, y, x) of a plane; z is the normal."""
    return tuple(map(tuple, np.stack([np.cross(along_row, down_column), down_column, along_row], axis=1)))


C, S = np.cos(0.4), np.sin(0.4)
DIRECTIONS = {
    "axial": right_handed((1, 0, 0), (0, 1, 0)),
    "axial prone": right_handed((-1, 0, 0), (0, -1, 0)),
    "sagittal": right_handed((0, 1, 0), (0, 0, -1)),
    "coronal": right_handed((1, 0, 0), (0, 0, -1)),
    "oblique": right_handed((C, S * S, S * C), (0, C, -S)),
}


def geometry(direction="axial"):
    return Geometry((2.5, 0.7, 0.9), (-80.25, 12.5, 3.125), DIRECTIONS[direction])


def same_grid(found, expected, tolerance_mm=0.01):
    """Whether two geometries put their voxels at the same places."""
    return all(
        np.allclose(getattr(found, name), getattr(expected, name), atol=tolerance_mm) for name in vars(expected)
    )


def series(direction="axial", dtype=np.uint16, shape=SHAPE, times_s=TIMES):
    array = np.random.default_rng(0).integers(0, 4096, shape).astype(dtype)
    return DceSeries(array, geometry(direction), times_s[: shape[0]])


def write(folder, data=None, *, trigger=False, **changes):
    """A series on disk.  trigger: the clock is TriggerTime, common though the standard keeps it for gated scans."""
    data = series() if data is None else data
    write_dce(data, folder, patient_id="P1", acquisition=replace(ACQUISITION, **changes))
    for t, seconds in enumerate(data.times_s) if trigger else ():
        phase = t + changes.get("first_temporal_position", 0)
        edit(folder, put(TriggerTime=1000 * seconds, AcquisitionTime="120000"), phase=phase)
    return folder


def files_at(folder, *, phase=None, slice_=None):
    """(path, dataset) of the files of one phase or one slice, by what the headers say."""
    found = [(path, pydicom.dcmread(path)) for path in sorted(folder.iterdir())]
    heights = sorted({ds.ImagePositionPatient[2] for _, ds in found})
    return [
        (path, ds)
        for path, ds in found
        if (phase is None or ds.TemporalPositionIdentifier == phase)
        and (slice_ is None or ds.ImagePositionPatient[2] == heights[slice_])
    ]


def edit(folder, change, **where):
    """Apply `change(dataset)` to the files chosen."""
    for path, ds in files_at(folder, **where):
        change(ds)
        ds.save_as(path)


def put(**elements):
    """An edit that sets elements, or deletes those given as None."""

    def change(ds):
        for keyword, value in elements.items():
            if value is None:
                delattr(ds, keyword)
            else:
                setattr(ds, keyword, value)

    return change


SEG = dict(patient_id="P1", series_description="ROI")


def lesions():
    """Two lesions with empty slices around them."""
    labels = np.zeros(SHAPE[1:], np.uint8)
    labels[1:3, 1:4, 2:5] = 1
    labels[2:4, 4, 6] = 2
    return labels


def analysis_mask():
    """The inverse mask: 0 in the first lesion, reasons for exclusion elsewhere."""
    codes = np.full(SHAPE[1:], 32 + 16, np.uint8)
    codes[0], codes[1, 0, 0], codes[1, 0, 1], codes[4, 0] = 1, 2, 64, 17
    codes[lesions() == 1] = 0
    return codes


def item(**elements):
    ds = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def frame_of(data, t, z, timing, rescale):
    """Functional groups of one frame of an Enhanced MR; the time stands where `timing` says."""
    seconds, content = data.times_s[t], item()
    groups = item(
        FrameContentSequence=[content],
        PlanePositionSequence=[item(ImagePositionPatient=list(data.geometry.position_mm((z, 0, 0))))],
        PixelValueTransformationSequence=[item(RescaleSlope=rescale[t][0], RescaleIntercept=rescale[t][1])],
    )
    if timing == "TemporalPositionIndex":
        content.TemporalPositionIndex = t + 1
    elif timing == "FrameAcquisitionDateTime":
        content.FrameAcquisitionDateTime = f"2000010123{50 + int(seconds) // 60:02d}{seconds % 60:09.6f}+0100"
    else:
        groups.CardiacSynchronizationSequence = [item(NominalCardiacTriggerDelayTime=1000 * seconds)]
    return groups


def write_enhanced(path, data, frames, timing="TemporalPositionIndex", rescale=((1, 0),) * 9):
    """Write the frames, a list of (t, z), as one Enhanced MR in that order."""
    axes = np.array(data.geometry.direction)
    dz, dy, dx = data.geometry.spacing_mm
    ds = item(
        SOPClassUID=EnhancedMRImageStorage,
        SOPInstanceUID=generate_uid(),
        SeriesInstanceUID="1.2.3.4",
        PhotometricInterpretation="MONOCHROME2",
        SharedFunctionalGroupsSequence=[
            item(
                PixelMeasuresSequence=[item(PixelSpacing=[dy, dx], SliceThickness=dz)],
                PlaneOrientationSequence=[item(ImageOrientationPatient=[*axes[:, 2], *axes[:, 1]])],
            )
        ],
        PerFrameFunctionalGroupsSequence=[frame_of(data, t, z, timing, rescale) for t, z in frames],
        PixelData=b"".join(data.array[t, z].tobytes() for t, z in frames),
    )
    ds.Rows, ds.Columns = data.array.shape[-2:]
    ds.SamplesPerPixel, ds.NumberOfFrames = 1, len(frames)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(data.array.dtype.kind == "i")
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.save_as(path, enforce_file_format=True)
