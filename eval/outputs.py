"""File `outputs.h5` of a run: outputs of the network for each test video, for pictures and the report.

It has one HDF5 group per video with `cas` (T, C + 1), `attention` (T,) and, if the network has it,
`modality_attention` (2, T), all float16. The classes and the snippet rate are attributes of the file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np

from utils.errors import InputError
from utils.formats.checksums import verify_checksum
from utils.formats.files import atomic_write
from utils.formats.hdf5 import create_hdf5, follow, group_name, names_in, read_checked, set_attributes

CURVES = ("cas", "attention", "modality_attention")
OPTIONAL = ("modality_attention",)  # a network without it has zero rows, which are not stored


def write_outputs(path: str | Path, results: Sequence, classes: Sequence[str], snippet_rate: float) -> None:
    """Write the outputs of the test videos.

    Args:
        path: File to write.
        results: Outputs of each video, with the attributes of a `VideoResult`.
        classes: Class names of the columns of `cas`, without the background.
        snippet_rate: Snippets per second.

    Raises:
        InputError: The file cannot be written.
    """
    with atomic_write(path) as partial, create_hdf5(partial) as file:
        set_attributes(file, {"classes": [name.encode() for name in classes], "snippet_rate": snippet_rate})
        for result in results:
            group = file.create_group(group_name(result.video_id))
            for name in CURVES:
                values = getattr(result, name).astype(np.float16)
                if len(values):
                    group.create_dataset(name, data=values, shuffle=True, compression="gzip", fletcher32=True)


class Outputs:
    """Open outputs.h5: `outputs[video_id]` is a dict of the three arrays.

    Attributes:
        classes: Class names of the columns of `cas`, without the background, which is the last column.
        snippet_rate: Snippets per second.
        video_ids: Videos in the file.
    """

    def __init__(self, file: h5py.File, num_bytes: int):
        self._file, self._num_bytes = file, num_bytes
        self.classes = [name.decode() for name in file.attrs["classes"].tolist()]
        self.snippet_rate = float(file.attrs["snippet_rate"])
        self.video_ids = [unquote(name) for name in file]

    def __contains__(self, video_id: str) -> bool:
        return group_name(video_id) in self._file

    def __getitem__(self, video_id: str) -> dict[str, np.ndarray]:
        group = group_name(video_id)
        stored = set(names_in(follow(self._file, group)))
        curves = {name: self._read(f"{group}/{name}") for name in CURVES if name in stored or name not in OPTIONAL}
        return {name: np.empty((0, len(curves["attention"]))) for name in OPTIONAL} | curves

    def _read(self, path: str) -> np.ndarray:
        return read_checked(self._file, path, self._num_bytes).astype(np.float32)


@contextmanager
def open_outputs(path: str | Path) -> Iterator[Outputs]:
    """Open outputs.h5 for reading, as a context manager.

    Args:
        path: File to read.

    Yields:
        The open file.

    Raises:
        InputError: The file is missing, damaged or of another kind; also for reads inside the block.
    """
    path = Path(path)
    try:
        verify_checksum(path)
        with h5py.File(path, "r") as file:
            yield Outputs(file, path.stat().st_size)
    except InputError:
        raise
    except Exception as error:  # h5py raises almost any exception for flipped bits
        raise InputError(f"{path}: not the outputs of a run ({error!s:.300})") from None
