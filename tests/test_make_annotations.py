"""scripts/make_annotations.py: videos and a table of labels to annotations.json."""

import pytest

from scripts.make_annotations import main as annotate
from tests.videos import steady, write_video
from utils.annotations import load_annotations


def test_annotations_from_a_table_of_labels(tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    rows = ["video,label,start,end"]
    for number in range(20):
        write_video(videos / f"v{number:02d}.mp4", steady(25, 10 + number))
        rows.append(f"v{number:02d}{'.mp4' * (number % 2)},{'Jump' if number < 10 else 'Run'},,")
    rows += ["v03,Run,0.1,0.4", "v03,Run,,"]
    (videos / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "bad,Jump,,"]) + "\n")
    write_video(videos / "unnamed.mp4", steady(25, 5))
    words = (videos, "--labels", tmp_path / "labels.csv", "--out")
    status, printed, error = run_main(annotate, *words, tmp_path / "a")
    assert status == 1 and f"failed: {videos / 'bad.mp4'}" in printed and "left out (bad, unnamed)" in printed, error
    annotations = load_annotations(tmp_path / "a")
    assert annotations.classes == ("Jump", "Run") and len(annotations.videos) == 20
    assert annotations.videos["v03"].labels == ("Jump", "Run")
    assert annotations.videos["v03"].segments.tolist() == [[0.1, 0.4]]
    for number in range(20):
        assert annotations.videos[f"v{number:02d}"].duration == pytest.approx((10 + number) / 25, abs=0.03)
    tests = [video.video_id for video in annotations.subset("test")]
    assert len(tests) == 6 and sum(video_id < "v10" for video_id in tests) == 3
    for folder, seed in (("b", 0), ("c", 1)):
        (videos / "bad.mp4").unlink(missing_ok=True)
        (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
        assert run_main(annotate, *words, tmp_path / folder, "--seed", seed)[0] == 0
        other = [video.video_id for video in load_annotations(tmp_path / folder).subset("test")]
        assert (other == tests) == (seed == 0)
    status, _, error = run_main(annotate, *words, tmp_path / "a")
    assert status == 2 and "already exists" in error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("clip,Run,,\nother,Run,,", "no such video among 2 files"),
        ("clip,,,", "the label is empty"),
        ("clip,Run,late,", "expected start and end in seconds"),
        ("", "has no rows"),
        ("clip,Run,,val\nclip2,Run,,", "'clip2' has no subset"),
        ("clip,Run,,val\nclip,Hop,,test", "is in the subsets 'val' and 'test'"),
    ],
)
def test_unusable_labels_are_refused_in_one_line(rows, message, tmp_path, run_main):
    for name in ("clip", "clip2"):
        write_video(tmp_path / f"{name}.mp4", steady(25, 5))
    (tmp_path / "labels.csv").write_text(f"video,label,start,subset\n{rows}\n")
    words = (tmp_path, "--labels", tmp_path / "labels.csv", "--out", tmp_path / "out")
    status, _, error = run_main(annotate, *words)
    assert status == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
