"""Small DICOM slides, written frame by frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid

_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"


def write_dicom(
    path: Path,
    size: tuple[int, int],
    frames: list[bytes],
    *,
    tile: int,
    syntax: str,
    photometric: str,
    kind: str = "VOLUME",
    series: str | None = None,
) -> str:
    """Write one instance of a slide of 0.5 µm/px; the UID of its series."""
    instance, meta = Dataset(), FileMetaDataset()
    instance.file_meta = meta
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = instance.SOPClassUID = _WSI
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = generate_uid()
    instance.StudyInstanceUID = generate_uid()
    instance.SeriesInstanceUID = series or generate_uid()
    instance.Modality, instance.ImageType = "SM", ["ORIGINAL", "PRIMARY", kind, "NONE"]
    instance.Rows = instance.Columns = tile
    instance.TotalPixelMatrixColumns, instance.TotalPixelMatrixRows = size
    instance.NumberOfFrames = len(frames)
    instance.SamplesPerPixel, instance.PlanarConfiguration = 3, 0
    instance.BitsAllocated = instance.BitsStored = 8
    instance.HighBit, instance.PixelRepresentation = 7, 0
    instance.PhotometricInterpretation = photometric
    instance.DimensionOrganizationType = "TILED_FULL"
    instance.TotalPixelMatrixFocalPlanes = instance.NumberOfOpticalPaths = 1
    measures, shared, optical = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [0.0005, 0.0005]
    shared.PixelMeasuresSequence = [measures]
    instance.SharedFunctionalGroupsSequence = [shared]
    optical.OpticalPathIdentifier = "0"
    instance.OpticalPathSequence = [optical]
    instance.PixelData = encapsulate(frames)
    instance["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    instance.save_as(path, enforce_file_format=True)
    return str(instance.SeriesInstanceUID)


def tiles_of(picture: np.ndarray, tile: int) -> list[np.ndarray]:
    """The tiles of a picture, row by row, the last ones filled up with grey."""
    height, width = (-(-side // tile) * tile for side in picture.shape[:2])
    padded = np.full((height, width, 3), 128, np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture
    return [
        np.ascontiguousarray(padded[y : y + tile, x : x + tile])
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    ]
