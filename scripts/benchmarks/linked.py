"""Dataset of very many videos: links to one array, and a simulated index."""

from pathlib import Path

import h5py
import numpy as np

from utils.annotations import Annotations
from utils.datasets import DATASETS, RELEASE_RATE, SNIPPET_RATE
from utils.features.convert import ANNOTATIONS, FEATURES
from utils.features.hdf5_source import HDF5Source
from utils.features.index import file_stamps, indexed_source, open_dataset, remember, save_index
from utils.features.indexed import Places
from utils.formats.hdf5 import create_hdf5
from utils.video_table import VideoTable, numbered

CLASSES = tuple(f"class_{number:02d}" for number in range(20))


def write_linked_dataset(out: Path, videos: int, test_videos: int, snippets: int, dim: int) -> int:
    """Write a dataset whose videos, also of both modalities, are links to one array.

    Only its index has annotations. The index also has the result of the check: no warnings.

    Returns:
        The bytes of features.h5.
    """
    out.mkdir(parents=True)
    names = [f"{'train' if number < videos else 'test'}_{number:07d}" for number in range(videos + test_videos)]
    values = np.random.default_rng(0).random((snippets, dim)).astype(np.float16)
    with create_hdf5(out / FEATURES) as file:
        file.attrs.update(simulated="random features of scripts/benchmark.py", **RELEASE_RATE._asdict())
        first = file.create_dataset(f"rgb/{names[0]}", data=values, chunks=values.shape, fletcher32=True)
        group = first.parent  # slow in h5py
        for name in names[1:]:
            h5py.h5o.link(first.id, group.id, name.encode())
        file["flow"] = file["rgb"]
    (out / ANNOTATIONS).write_text("{}")
    annotations, source = _annotate(names, videos, snippets), HDF5Source(out / FEATURES)
    found, count = source.places("rgb", names[0]), len(names)
    places = Places(
        annotations.videos.numbers,
        length=np.full(count, found.length),
        width=np.full(count, found.width),
        dtype=np.full(count, found.dtype),
        file=np.zeros(count, np.uint32),
        chunk_length=np.full(count, found.chunk_length),
        chunk_starts=np.arange(count + 1, dtype=np.uint32),
        offsets=np.full(count, found.offsets[0], np.uint64),
    )
    rates, stamps = dict.fromkeys(source.modalities, RELEASE_RATE), file_stamps(out)
    indexed = indexed_source(out, source, rates, dict.fromkeys(source.modalities, places), stamps)
    save_index(out, annotations, indexed, stamps)
    remember(open_dataset(out)[1], (DATASETS["demo"], "error"), list)
    return (out / FEATURES).stat().st_size


def _annotate(names: list[str], videos: int, snippets: int) -> Annotations:
    """Return one segment per video; those after the first `videos` are for testing."""
    count = len(names)
    labels, starts = np.arange(count, dtype=np.uint32) % len(CLASSES), np.arange(count + 1, dtype=np.uint32)
    columns = {
        "subset": (np.arange(count) >= videos).astype(np.uint32),
        "duration": np.full(count, (snippets + 0.5) / SNIPPET_RATE),
        "labels": labels,
        "label_starts": starts,
        "segments": np.tile([1.0, 4.0], (count, 1)),
        "segment_labels": labels,
        "segment_starts": starts,
        "ambiguous": np.empty((0, 2)),
        "ambiguous_starts": np.zeros(count + 1, np.uint32),
    }
    return Annotations(CLASSES, VideoTable(numbered(names), ("train", "test"), CLASSES, columns))
