"""Layouts of array files in folders: which file contains which modality of which video.

Read as they are, `.npy` and `.npz` alike:

* `<modality>/<video_id>.npy`, also below `features/` and in one folder per subset
  (`features/train/rgb/<video_id>.npy`).
* `<video_id>_<modality>.npy` in one folder, as the video_features tool writes them, with `<video_id>_fps.npy` and
  `<video_id>_timestamps_ms.npy` beside them. Without these two, the modalities must be `rgb` and `flow`.
* `<video_id>.npz` with one array per modality.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.annotations import RELEASE_SUFFIX
from utils.errors import InputError, shorten
from utils.formats.npy import npz_names

ARRAY_FILES = "*.np[yz]"
STREAMS = ("rgb", "flow")  # modalities that a file name may end with
FPS, TIMESTAMPS = "fps", "timestamps_ms"  # endings of files about a video, beside its features
_CONTAINERS = frozenset(("features", "train", "training", "val", "valid", "validation", "test", "testing"))
_LEVELS = 4  # folders down to the files: features/train/rgb/<video_id>.npy


TRANSPOSED = (
    "the arrays of '{}' look transposed, (channels, snippets): the first axis is equal in all videos, the second is "
    "not; scripts/convert_features.py --transpose turns them"
)


class Location(NamedTuple):
    """Place of one array: a .npy file, or a member of a .npz file."""

    path: Path
    member: str | None = None


@dataclass(frozen=True)
class Arrangement:
    """Arrangement of the features that cannot be seen from the files, by features.json or options of the converter."""

    split: Mapping[str, tuple[int, int]] | None = None  # first and last channel (exclusive) of each modality
    transpose: bool = False  # True: arrays are (channels, snippets)
    suffixes: tuple[str, ...] = ()  # modalities that file names end with
    durations: Mapping[str, float | None] | None = None  # seconds by video, if the features were rescaled in time


def scan_folder(root: Path, suffixes: Collection[str] = ()) -> tuple[dict[str, dict[str, Location]], ...]:
    """Return the arrays below a folder by modality and video, and the fps and timestamps files likewise.

    Args:
        root: Dataset folder.
        suffixes: Modalities that file names end with, () to recognize them.

    Raises:
        InputError: Names do not match, or a video has two arrays of one modality.
    """
    arrays, extras = defaultdict(dict), defaultdict(dict)
    for folder, files in array_files(root).items():
        for modality, video_id, location in _locate(root, folder, files, suffixes):
            videos = (extras if modality in (FPS, TIMESTAMPS) else arrays)[modality]
            if other := videos.get(video_id):
                raise InputError(
                    f"{location.path}: video '{video_id}' has '{modality}' in {other.path} too; remove one of them"
                )
            videos[video_id] = location
    return dict(sorted(arrays.items())), dict(extras)


def parse_split(content: object, where: str) -> dict[str, tuple[int, int]]:
    """Return the channels of each modality, from `{"rgb": [0, 1024], "flow": [1024, 2048]}`.

    Raises:
        InputError: The content is anything else.
    """
    split = {}
    for name, channels in content.items() if isinstance(content, dict) else ():
        pair = tuple(channels) if isinstance(channels, list | tuple) else ()
        if len(pair) == 2 and all(type(bound) is int for bound in pair) and 0 <= pair[0] < pair[1]:
            split[name] = pair
    if not split or len(split) != len(content):
        raise InputError(
            f'{where}: expected a split such as {{"rgb": [0, 1024], "flow": [1024, 2048]}}, got {shorten(content)}'
        )
    return split


def looks_transposed(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return True if arrays have equally many rows, and no number of columns that most of them share."""
    if len(shapes) < 2 or any(len(shape) != 2 for shape in shapes):
        return False
    rows, columns = (Counter(lengths) for lengths in zip(*shapes, strict=True))
    return len(rows) == 1 and columns.most_common(1)[0][1] <= len(shapes) / 2


def array_files(root: Path) -> dict[Path, list[Path]]:
    """Return the files by folder: of the folders in `root`, else of deeper ones, else of `root` itself."""
    for patterns in (["*"], ["/".join("*" * level) for level in range(2, _LEVELS)], ["."]):
        folders = defaultdict(list)
        for pattern in patterns:
            for path in sorted(root.glob(f"{pattern}/{ARRAY_FILES}")):
                folders[path.parent].append(path)
        folders = {folder: files for folder, files in folders.items() if not _is_hidden(folder, root)}
        if folders:
            return folders
    return {}


def _is_hidden(folder: Path, root: Path) -> bool:
    """Return True for a folder of a release's annotations, or below one or a folder with a dot."""
    parts = (root.name, *folder.relative_to(root).parts)
    return any(part.endswith(RELEASE_SUFFIX) for part in parts) or any(part.startswith(".") for part in parts[1:])


def _locate(
    root: Path, folder: Path, files: Sequence[Path], suffixes: Collection[str]
) -> Iterator[tuple[str, str, Location]]:
    """Yield modality, video and place of each array in one folder."""
    members = {path: npz_names(path) if path.suffix == ".npz" else () for path in files}
    endings = {path: _ending(path.stem) for path in files}
    found = set(endings.values())
    by_name = bool(suffixes) or not found.isdisjoint((FPS, TIMESTAMPS)) or found <= set(STREAMS)
    parts = [root.name, *folder.relative_to(root).parts]
    named = [part for part in parts[1:] if part.casefold() not in _CONTAINERS] or parts[-1:]
    for path in files:
        ending = next((name for name in suffixes if path.stem.endswith(f"_{name}")), endings[path])
        if len(members[path]) > 1:
            yield from ((name, path.stem, Location(path, name)) for name in members[path])
            continue
        member = members[path][0] if members[path] else None
        video_id = path.stem.removesuffix(f"_{ending}") if by_name else path.stem
        if by_name and (not ending or not video_id or (suffixes and ending not in (*suffixes, FPS, TIMESTAMPS))):
            names = ", ".join(suffixes or STREAMS)
            raise InputError(
                f"{path}: expected a file <video_id>_<modality> ({names}) like others beside it; "
                "scripts/convert_features.py --suffix names the modalities"
            )
        yield ending if by_name else named[-1], video_id, Location(path, member)


def _ending(stem: str) -> str:
    """Return the modality at the end of a file name, "" without one."""
    return TIMESTAMPS if stem.endswith(f"_{TIMESTAMPS}") else stem.rpartition("_")[2] if "_" in stem else ""
