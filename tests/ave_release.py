"""A small folder like AVE's release, for tests."""

from pathlib import Path

import h5py
import numpy as np

CLASSES = ("Bark", "Flute", "Truck")
CLIPS_OF_A_CLASS = {"train": 4, "val": 1, "test": 2}
BACKGROUND_CLIPS = 2


def make_release(folder: Path) -> list[tuple[str, str, int, int]]:
    """Annotations, orders and labels, no features; returns class, YouTube id, start and end of each line.

    The second clip is of the same YouTube video as the first.
    """
    subsets = [subset for subset, count in CLIPS_OF_A_CLASS.items() for _ in range(count * len(CLASSES))]
    generator = np.random.default_rng(0)
    lines = []
    for row in range(len(subsets)):
        start = int(generator.integers(0, 6))
        end = int(generator.integers(start + 2, 11))
        lines.append((CLASSES[row % len(CLASSES)], f"video-{max(row, 1)}", start, end))
    text = "".join(f"{name}&{video}&good&{start}&{end}\n" for name, video, start, end in lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Annotations.txt").write_text(text)
    for subset in CLIPS_OF_A_CLASS:
        rows = [row for row, name in enumerate(subsets) if name == subset]
        write_array(folder / f"{subset}_order.h5", np.array(rows[::-1]), "order")
    write_array(folder / "labels_noisy.h5", np.eye(len(CLASSES) + 1)[[-1] * BACKGROUND_CLIPS])
    return lines


def write_array(path: Path, values: np.ndarray, key: str = "avadataset") -> None:
    path.unlink(missing_ok=True)  # which may be open
    with h5py.File(path, "w") as file:
        file[key] = values
