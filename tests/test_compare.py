"""eval/compare.py: resamples against lists with repeated videos, and the command."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.average_precision import named_means
from eval.compare import (
    bootstrap_interval,
    bootstrap_maps,
    compare,
    comparison_table,
    main,
    resampled_map,
    two_sided_p_value,
)
from eval.detection import evaluate_detections
from eval.detection_formats import read_detections
from eval.tables import make_table, read_ground_truth
from utils.datasets import DATASETS
from utils.errors import InputError

THRESHOLDS = (0.1, 0.5, 0.7)
ALL = {"0.1:0.7": [0, 1, 2]}


def evaluated(truth, detections, videos="uvw", protocol="seconds"):
    """Evaluate rows. truth: (video, label, start, end); detections: the same with a score."""
    table = make_table(truth, videos, "abc")
    return evaluate_detections(table, make_table(detections), THRESHOLDS, protocol=protocol)


def repeated(rows, counts):
    """Repeat the rows of each video; every copy is a video of its own, next to the other copies."""
    return [(f"{row[0]}{copy}", *row[1:]) for row in rows for copy in range(counts.get(row[0], 1))]


ROWS = st.tuples(st.sampled_from("uvw"), st.sampled_from("abc"), st.integers(0, 12), st.integers(1, 6))


@st.composite
def lists(draw):
    truth = [(video, label, start, start + length) for video, label, start, length in draw(st.lists(ROWS, min_size=1))]
    rows = draw(st.lists(st.tuples(ROWS, st.integers(0, 5)), max_size=40))  # ties are common
    detections = [(video, label, start, start + length, score) for (video, label, start, length), score in rows]
    return truth, detections + draw(st.sampled_from([[], [("unknown", "a", 0, 1, 3)]]))


@settings(max_examples=300)
@given(lists(), st.tuples(*[st.integers(0, 3)] * 3))
def test_a_resample_is_the_list_with_repeated_videos(case, times):
    truth, detections = case
    counts = dict(zip("uvw", times, strict=True))
    drawn = repeated(truth, counts)
    maps = resampled_map(evaluated(truth, detections), np.array([[*times, 1.0]]))
    if not drawn:
        assert np.isnan(maps).all()
        return
    expected = evaluated(
        drawn, repeated(detections, counts), [f"{video}{copy}" for video in "uvw" for copy in range(3)]
    )
    np.testing.assert_allclose(maps[0], expected.map, atol=1e-12)


@settings(max_examples=100)
@given(lists())
def test_properties_of_every_bootstrap(case):
    result = evaluated(*case)
    used = {row[0] for rows in case for row in rows} & set("uvw")
    if len(used) < 2:
        with pytest.raises(InputError, match="at least two videos"):
            bootstrap_maps([result], 20)
        return
    first, second = bootstrap_maps([result, result], 20, seed=3)
    assert 0 < len(first) <= 20
    assert (first >= 0).all() and (first <= 1 + 1e-12).all()
    np.testing.assert_array_equal(first, second)  # the same videos are drawn for both
    np.testing.assert_array_equal(first, bootstrap_maps([result], 20, seed=3)[0])
    rows = compare([result, result], ALL, 20)
    assert [row["tiou"] for row in rows] == ["0.1", "0.5", "0.7", "0.1:0.7"]
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in rows)
    assert all(row["difference_interval"] == [0, 0] for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_blocks_change_nothing(monkeypatch):
    truth = [(video, "a", 0, 10) for video in "uvw"]
    result = evaluated(truth, [("u", "a", 0, 10, 0.9), ("v", "a", 0, 4, 0.8), ("w", "a", 1, 10, 0.7)])
    whole = bootstrap_maps([result], 100)[0]
    monkeypatch.setattr("eval.compare.BLOCK", 1)
    seen = []
    np.testing.assert_array_equal(bootstrap_maps([result], 100, progress=lambda it: seen.extend(it) or seen)[0], whole)
    assert len(seen) > 1


def test_interval_and_p_value_by_hand():
    errors = np.arange(-49, 50) / 100  # quantiles -0.4655 and 0.4655
    skewed = np.array([-0.1, -0.1, -0.1, 0.0, 0.3])
    assert bootstrap_interval(0.6, errors + 0.7) == pytest.approx([0.6 - 0.4655, 0.6 + 0.4655])
    assert bootstrap_interval(0.6, skewed, 1.0) == pytest.approx([0.3, 0.7])  # skewed upwards
    assert two_sided_p_value(0.15, skewed + 5) == pytest.approx(2 * (1 + 1) / 6)
    assert two_sided_p_value(-0.2, skewed + 5) == pytest.approx(2 / 6)  # the smallest possible value
    assert two_sided_p_value(0.0, np.zeros(5)) == 1


def test_one_list_is_better_in_every_video():
    videos = [f"v{number}" for number in range(20)]
    truth = [(video, "a", 0, 10) for video in videos]
    good = [(video, "a", 0, 10, 0.5) for video in videos]
    bad = [(video, "a", 5, 15, 0.5) for video in videos]
    row = compare([evaluated(truth, bad, videos), evaluated(truth, good, videos)], {}, 199)[1]  # tIoU 0.5
    assert (row["map"], row["difference"], row["difference_interval"]) == ([0, 1], 1, [1, 1])
    assert row["p_value"] == pytest.approx(2 / 200)


def test_what_cannot_be_compared_is_refused():
    truth = [("u", "a", 0, 10), ("v", "a", 0, 10.4)]
    detections = [("u", "a", 0, 10, 0.9)]
    one = evaluated(truth, detections)
    for other in (evaluated(truth, detections, protocol="snippet"), evaluated(truth[:1], detections)):
        with pytest.raises(InputError, match="same ground truth"):
            bootstrap_maps([one, other])
    for wrong in ({"resamples": 0}, {"seed": -1}):
        with pytest.raises(InputError, match="at least"):
            bootstrap_maps([one], **wrong)
    assert [len(maps) for maps in bootstrap_maps([evaluated(truth, [])], 10)] == [10]


@pytest.fixture
def run(tmp_path, run_main):
    """Run the command on these detection lists and options; return exit status, stdout and stderr."""

    def command(lists, *options):
        annotations = [{"label": "x", "segment": [1, 5]}]
        database = {video: {"subset": "test", "annotations": annotations} for video in "abcd"}
        (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
        paths = [tmp_path / f"{number}.json" for number in range(len(lists))]
        for path, detections in zip(paths, lists, strict=True):
            detections = (
                {"results": detections} if isinstance(detections, dict) and "results" not in detections else detections
            )
            path.write_text(detections if isinstance(detections, str) else json.dumps(detections))
        arguments = [*paths, "--ground-truth", tmp_path / "truth.json", *options]
        return run_main(main, *arguments)

    return command


def detected_until(end):
    return {video: [{"label": "x", "score": 0.5, "segment": [1.0, end]}] for video in "abcd"}


def test_command_compares_two_files(run):
    status, out, err = run([detected_until(3.4), detected_until(5)], "--resamples", 99)
    assert (status, err) == (0, "")
    a, b, _, head, *rows = out.splitlines()
    assert a.startswith("A: ") and a.endswith("0.json")
    assert b.startswith("B: ") and b.endswith("1.json")
    assert head.split() == ["tIoU", "A", "95", "%", "B", "95", "%", "B", "-", "A", "95", "%", "p"]
    assert [row.split()[0] for row in rows] == [*(f"0.{i}" for i in range(1, 10)), "0.1:0.5", "0.1:0.7", "0.1:0.9"]
    assert rows[0].split()[-1] == "1.000"
    cells = ["0.7", "0.00", "[0.00,", "0.00]", "100.00", "[100.00,", "100.00]", "+100.00", "[+100.00,", "+100.00]"]
    assert rows[6].split() == [*cells, "0.020"]


def test_command_with_one_file_gives_its_intervals(run):
    status, out, _ = run([detected_until(5)], "--protocol", "snippet", "--seed", 5)
    assert status == 0
    assert out.splitlines()[-1].split() == ["0.1:0.9", "100.00", "[100.00,", "100.00]"]
    assert out.splitlines()[1].startswith("grid of the snippet protocols: 1.5625 snippets per second (the default of")
    assert " p" not in out.splitlines()[3]


def test_command_names_a_mean_by_its_range_only_if_it_is_the_published_one(run):
    status, out, _ = run([detected_until(5)], "--tiou-thresholds", 0.1, 0.3, 0.5, "--resamples", 9)
    assert status == 0
    assert [row.split()[0] for row in out.splitlines()[3:]] == ["0.1", "0.3", "0.5", "mean"]
    _, out, _ = run([detected_until(5)], "--tiou-thresholds", *(i / 10 for i in range(1, 8)), "--resamples", 9)
    assert [row.split()[0] for row in out.splitlines()[10:]] == ["0.1:0.5", "0.1:0.7"]


def at_rate(rate):
    return {"results": detected_until(3.4), "snippet_rate": rate}


def test_command_takes_the_grid_from_the_files_if_they_agree(run):
    on_grid = ["--protocol", "snippet", "--resamples", 9]
    for files in ([at_rate(2.5), at_rate(2.5)], [at_rate(2.5), detected_until(5)]):
        status, out, _ = run(files, *on_grid)
        assert status == 0
        assert "\ngrid of the snippet protocols: 2.5 snippets per second (from " in out
    status, out, err = run([at_rate(2.5), at_rate(1)], *on_grid)
    assert (status, out) == (2, "")
    assert err.startswith("error: the detection files have different snippet rates") and err.count("\n") == 1
    assert "0.json has 2.5, " in err and "1.json has 1; choose --snippet-rate" in err
    assert run([at_rate(2.5), at_rate(1)], *on_grid, "--snippet-rate", 2)[0] == 0
    assert run([at_rate(2.5), at_rate(1)], "--resamples", 9)[0] == 0  # in seconds it does not matter


def test_command_only_on_the_videos_of_both_files(run):
    first, second = (dict(detected_until(5)) for _ in "AB")
    del first["d"], second["a"]
    status, out, _ = run([first, second], "--resamples", 9)
    assert status == 0
    assert out.count("note: 1 annotated video without an entry in the detections") == 2
    assert out.splitlines()[-1].split()[1] == "75.00"
    status, out, _ = run([first, second], "--resamples", 9, "--only-detected")
    assert status == 0
    assert out.count("annotated videos are evaluated: those with an entry; dropped: 1 detection of other") == 2
    assert out.splitlines()[-1].split()[1] == "100.00"


@pytest.mark.parametrize(
    ("lists", "options", "message"),
    [
        ([detected_until(5)] * 3, [], "expected one or two detection files, got 3"),
        ([detected_until(5), '{"results": {'], [], "1.json: not valid JSON"),
        ([detected_until(5), detected_until(0)], [], "1.json: video 'a', detection 0: the segment"),
        ([detected_until(5)], ["--resamples", "0"], "at least 1 resample"),
        ([detected_until(5)], ["--seed", "-1"], "a seed of at least 0"),
        ([detected_until(5)], ["--subset", "val"], "no video of subset 'val'"),
        ([detected_until(5)], ["--resamples", "many"], "(see python -m eval.compare --help)"),
    ],
)
def test_command_refuses_in_one_line(run, lists, options, message):
    status, _, err = run(lists, *options)
    assert status == 2
    assert message in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_real_list_against_itself_with_shuffled_scores(reference):
    truth = read_ground_truth(reference / "data/thumos14/annotations.json", "test")
    detections = read_detections(reference / "data/detections/thumos14_base_model_31587.json")
    rng = np.random.default_rng(0)
    picked = rng.choice(len(detections), round(0.05 * len(detections)), replace=False)
    score = detections.score.copy()
    score[picked] = score[rng.permutation(picked)]
    spec = DATASETS["thumos14"]
    lists = (
        detections,
        type(detections)(
            detections.videos,
            detections.classes,
            detections.video,
            detections.label,
            detections.start,
            detections.end,
            score,
        ),
    )
    results = [evaluate_detections(truth, table, spec.tiou_thresholds) for table in lists]
    rows = compare(results, named_means(spec.tiou_thresholds, spec.tiou_thresholds, spec.average_ranges))
    last = rows[-2]  # 0.1:0.7
    assert last["tiou"] == "0.1:0.7"
    assert last["interval"][0][0] < last["map"][0] < last["interval"][0][1]
    low, high = last["difference_interval"]
    assert -0.05 < low < last["difference"] < high < 0
    assert last["p_value"] == pytest.approx(2 / 1001)
    assert len(comparison_table(rows).splitlines()) == 13
