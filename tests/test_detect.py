"""scripts/detect.py on video files, and the page that plays a video beside its detections."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch

from eval.html_report.detection_files import annotations_of, open_detections
from eval.html_report.player import add_segments, write_players
from eval.outputs import write_outputs
from main import main as train
from scripts.detect import main as detect
from tests.browser import open_browser, press, script, wait_until
from tests.conftest import ROOT
from tests.videos import TINY, TINY_BACKBONE, Tiny, simulated_dataset, steady, write_video
from utils.annotations import parse_annotations
from utils.datasets import DATASETS
from utils.detector import Detector, load_detector
from utils.errors import InputError
from utils.formats.checksums import sha256_of
from utils.video.backbones import BACKBONES
from utils.video.extract import Extractor
from utils.video.stored import read_recipe

NAME = "a & <b>#1"  # of a video: needs escapes in HTML, in an address and in a file name
RATE = TINY.snippet_rate


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """tests/test_detector.py draws them."""
    monkeypatch.setattr(Detector, "draw", lambda *_: None)
    monkeypatch.setattr("scripts.detect.save_figure", lambda figure, path, dpi: path.touch())


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", TINY_BACKBONE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with weights, two clips, and a checkpoint trained on SIMULATED features with the recipe of the weights."""
    folder = tmp_path_factory.mktemp("detect")
    torch.save(Tiny().state_dict(), folder / "tiny.pt")
    for name in (NAME, "other"):
        write_video(folder / f"{name}.mp4", steady(10, 80))
    recipe = replace(TINY, weights={"rgb": sha256_of(folder / "tiny.pt")})
    data = simulated_dataset(folder / "data", recipe, (3, 3))
    train(
        f"--config {ROOT}/configs/demo.yaml --path-dataset {data} --run-dir {folder}/run --modalities rgb rgb_diff "
        "--num-snippets 12 --max-iter 1 --eval-every 1 --no-evaluate-untrained --device cpu".split()
    )
    shutil.copy(folder / "run/checkpoints/last.pt", folder / "last.pt")
    return folder


@pytest.fixture
def words(folder, tmp_path):
    """Words of the command after its inputs."""
    return (
        *("--checkpoint", folder / "last.pt", "--output-dir", tmp_path / "out", "--device", "cpu"),
        *("--weights", folder / "tiny.pt", "--workers", "0"),
    )


def page_data(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def read_page(path: Path) -> tuple[str, dict, str | None]:
    """Return a page, its data and the address of its video."""
    page = path.read_text(encoding="utf-8")
    found = re.search(r'<video [^>]*src="([^"]*)"', page)
    return page, page_data(page), found and found[1]


def annotate(path: Path, video_id: str) -> Path:
    rows = [{"label": "Unknown <i>class</i>", "segment": [1.5, 3.0]}]
    video = {"subset": "test", "duration": 8.0, "annotations": rows, "ambiguous": [[4.0, 4.5]]}
    path.write_text(json.dumps({"database": {video_id: video}}))
    return path


def test_a_video_gives_detections_and_a_page(folder, words, tmp_path, run_main):
    truth = annotate(tmp_path / "truth.json", NAME)
    clip = folder / f"{NAME}.mp4"
    status, printed, error = run_main(detect, clip, folder / "other.mp4", *words, "--ground-truth", truth)
    assert (status, error) == (0, "") and f"[1/2] {clip}: 20 snippets" in printed
    out = tmp_path / "out"

    extractor = Extractor(TINY, {"rgb": Tiny()}, torch.device("cpu"))
    expected = load_detector(folder / "last.pt", "cpu")(extractor(clip), RATE)
    rows = json.loads((out / "detections.json").read_text())["results"][NAME]
    got = pd.DataFrame({"label": row["label"], "score": row["score"], "start": row["segment"][0]} for row in rows)
    got = got.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(got, expected[["label", "score", "start"]])

    page, data, address = read_page(out / "pages/a & %3Cb%3E#1.html")
    assert address.endswith("/a%20%26%20%3Cb%3E%231.mp4") and not address.startswith("/")
    assert (out / "pages" / unquote(address)).resolve() == clip.resolve()
    assert (data["id"], data["rate"], data["snippets"], data["total"]) == (NAME, RATE, 20, len(expected))
    best = data["detections"][0]
    assert [data["classes"][best[0]], best[1]] == [expected["label"][0], round(expected["start"][0], 2)]
    assert data["isAnnotated"] and data["ambiguous"] == [[4.0, 4.5]]
    assert data["truth"] == [[data["classes"].index("Unknown <i>class</i>"), 1.5, 3.0]]
    assert data["modalities"] == ["rgb", "rgb_diff"] and len(data["attention"]) == 3 and data["cas"]
    assert not read_page(out / "pages/other.html")[1]["isAnnotated"]
    assert "<b>#1" not in page and "<i>class" not in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:|\.\./)|url\(|@import""", page)
    assert len(re.findall("<script", page)) == 2 and "default-src 'none'" in page
    players = page_data((out / "report.html").read_text(encoding="utf-8"))["players"]
    assert players == {NAME: "pages/a%20%26%20%253Cb%253E%231.html", "other": "pages/other.html"}


def test_bad_videos_are_one_line_each_and_the_others_go_on(folder, words, tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "bad.mp4").write_bytes(b"no video")
    (videos / "empty.mp4").touch()
    status, printed, error = run_main(detect, videos, *words)
    assert (status, error) == (1, "") and printed.count("failed: ") == 4 and not (tmp_path / "out").exists()
    shutil.copy(folder / "other.mp4", videos / "good.mp4")
    status, printed, error = run_main(detect, videos, *words)
    assert (status, error) == (1, "") and printed.splitlines()[-1].startswith(f"failed: {videos}")
    assert [path.name for path in (tmp_path / "out/pages").iterdir()] == ["good.html"]


def changed(folder: Path, path: Path, change) -> Path:
    content = torch.load(folder / "last.pt", weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (lambda c: c.pop("recipe"), (), "does not store how its features were extracted from videos"),
        (lambda c: c.update(recipe={"how": "by hand"}), (), "the recipe of its features has no 'backbone'"),
        (lambda c: c["recipe"].update(backbone="huge"), (), "come from backbone 'huge', expected one of r2plus1d_18"),
        (lambda c: c["recipe"].update(weights={"rgb": "ab" * 32}), (), "expected the rgb weights of its training"),
        (lambda c: None, ("--snippet-rate", "3"), "--video and --snippet-rate are for features"),
        (lambda c: None, ("{folder}/data",), "the inputs are videos and features"),
        (lambda c: None, ("--ground-truth", "{folder}/data"), "none of the videos is annotated (a video: 'other'"),
        (lambda c: None, ("missing.mp4",), "missing.mp4: no such file"),
    ],
)
def test_impossible_detections_are_refused_in_one_line(change, more, message, folder, words, tmp_path, run_main):
    checkpoint = changed(folder, tmp_path / "changed.pt", change)
    more = [word.format(folder=folder) for word in more]
    inputs = [word for word in more if not more[0].startswith("--")]
    options = [word for word in more if word not in inputs]
    status, _, error = run_main(detect, folder / "other.mp4", *inputs, *words, "--checkpoint", checkpoint, *options)
    assert status == 2 and message in error and error.count("\n") == 1


def test_other_weights_can_be_accepted(folder, words, tmp_path, run_main):
    checkpoint = changed(folder, tmp_path / "changed.pt", lambda c: c["recipe"].update(weights={"rgb": "ab" * 32}))
    status, *_ = run_main(detect, folder / "other.mp4", *words, "--checkpoint", checkpoint, "--any-recipe")
    assert status == 0


def test_features_have_a_page_with_their_video_or_without(folder, words, tmp_path, run_main):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(folder / "other.mp4", videos / "test_0012.mp4")
    video = ("--video", videos / "test_0012.mp4", "--copy-videos")
    status, _, error = run_main(detect, folder / "data", *words[:6], *video)
    assert status == 0, error
    pages = tmp_path / "out/pages"
    page, data, address = read_page(pages / "test_0012.html")
    assert address == "test_0012.mp4" and (pages / address).read_bytes() == (videos / address).read_bytes()
    assert not data["isAnnotated"] and "SIMULATED features" in page
    page, data, address = read_page(pages / "test_0013.html")
    assert address is None and data["attention"] and "media-src" not in page
    assert len(list(pages.glob("*.html"))) == 16
    status, _, error = run_main(detect, folder / "data", *words[:6], "--video", folder / "other.mp4")
    assert status == 2 and "--video: no features of 'other'" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", 3), ("fps", 0), ("fps", float("nan")), ("fps", True), ("frames", 1.5), ("frames", 10**9),
        ("stride", 0), ("resize", [1, 2, 3]), ("resize", 128), ("crop", -1), ("mean", [0.5]), ("std", [0, 1, 1]),
        ("antialias", 1), ("rounded", None), ("flow", "farneback"), ("flow", []), ("flow_bound", 0),
        ("weights", {"rgb": 3}), ("further", 1), ("crop", 4096),
    ],
)  # fmt: skip
def test_a_recipe_of_an_untrusted_checkpoint_is_checked(name, value):
    content = {**TINY.as_dict(), "frames": 64, name: value}
    assert read_recipe(TINY.as_dict(), "last.pt") == TINY
    with pytest.raises(InputError, match="last.pt: .*give features in place of videos"):
        read_recipe(content, "last.pt")


# ---- in a browser ----

CLASSES = ["Dive", "<img src=x onerror=alert(1)>"]
DETECTIONS = [("Dive", 1.0, 3.0, 0.9), ("Dive", 2.0, 4.0, 0.4), (CLASSES[1], 5.0, 7.0, 0.8), ("Dive", 5.5, 6.0, 0.05)]
FAINT = ("Dive", 0.0, 8.0, 0.01)  # below 5 % of the best score
DURATION = 8.0


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium on the page of a clip of eight seconds with known detections."""
    folder = tmp_path_factory.mktemp("page")
    driver = open_browser(folder / "profile")
    try:
        write_video(folder / "clip #1.webm", steady(10, 80), codec="libvpx")
        rows = [{"label": label, "segment": [a, b], "score": score} for label, a, b, score in (*DETECTIONS, FAINT)]
        (folder / "detections.json").write_text(json.dumps({"results": {"clip": rows}}))
        rng, snippets = np.random.default_rng(0), int(DURATION * RATE)
        attention, cas = rng.random((2, snippets)), rng.normal(size=(snippets, 3))
        video = SimpleNamespace(
            video_id="clip", cas=cas, modality_attention=attention, attention=attention.mean(axis=0)
        )
        write_outputs(folder / "outputs.h5", [video], CLASSES, RATE)
        [run] = open_detections([folder], DATASETS["demo"], modalities=("rgb", "flow"))
        truth = {"database": {"clip": {"subset": "test", "annotations": [{"label": "Dive", "segment": [1, 2]}]}}}
        annotations = add_segments(annotations_of([run]), parse_annotations(truth, "truth"))
        write_players(folder / "pages", run, annotations, {"clip": folder / "clip #1.webm"}, False)
        driver.get((folder / "pages/clip.html").as_uri())
        wait_until(lambda: script(driver, "document.getElementById('player').readyState > 1"))
        yield driver
    finally:
        driver.quit()


def moment(browser) -> tuple[float, float, list[str]]:
    """Return the time of the player, that of the play head, and the classes of the current detections."""
    time, left = script(
        browser, "[document.getElementById('player').currentTime, document.getElementById('head').style.left]"
    )
    marked = "[...document.querySelectorAll('#list [aria-current] b')].map((name) => name.textContent)"
    duration = script(browser, "Number(document.getElementById('axis').getAttribute('aria-valuemax'))")
    return time, float(left.removesuffix("%")) * duration / 100, script(browser, marked)


def test_browser_plays_and_the_time_axis_follows(browser):
    playing = "!document.getElementById('player').paused"
    # So slow that it plays for half a minute from the second start to the end of the clip.
    script(browser, "(document.getElementById('player').playbackRate = 0.1)")
    for start in (1.2, 5.1):
        script(browser, "(document.getElementById('player').currentTime = arguments[0])", start)
        press(browser, " ")
        wait_until(lambda: moment(browser)[0] > start + 0.02)  # noqa: B023
        press(browser, " ")
        wait_until(lambda: not script(browser, playing))
        wait_until(lambda: abs(moment(browser)[0] - moment(browser)[1]) < 0.01)
        time, _, marked = moment(browser)
        at_head = [label for label, first, last, _ in DETECTIONS if first <= time < last]
        assert start < time < DURATION and marked == list(dict.fromkeys(at_head))
        assert script(browser, "document.querySelectorAll('rect.current').length") == len(marked)
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_browser_seeks_by_keys_and_clicks(browser):
    def at(expected: float) -> bool:
        time, head, _ = moment(browser)
        return abs(time - expected) < 0.06 and abs(head - time) < 0.01

    press(browser, "\ue011")  # Home
    wait_until(lambda: at(0))
    for key, expected in (("n", 1), ("n", 2), ("n", 5), ("p", 2), ("\ue014", 3), ("\ue012", 2)):
        press(browser, key)
        wait_until(lambda: at(expected))  # noqa: B023
    assert moment(browser)[2] == ["Dive"]  # the better one of two
    script(browser, "document.querySelectorAll('#list button')[2].click()")
    wait_until(lambda: at(5))
    chains = pytest.importorskip("selenium.webdriver.common.action_chains", reason="selenium is not installed")
    overlay = browser.find_element("css selector", "#axis .overlay")
    chains.ActionChains(browser).move_to_element(overlay).click().perform()
    middle = script(browser, "Number(document.getElementById('axis').getAttribute('aria-valuemax'))") / 2
    wait_until(lambda: at(middle))
    press(browser, "+")
    width = "document.querySelector('.track svg').viewBox.baseVal.width"
    wait_until(lambda: abs(script(browser, width) - middle) < 0.01)
    press(browser, "0")


def test_browser_hides_detections_below_the_threshold(browser):
    def count(selector: str) -> int:
        return script(browser, "document.querySelectorAll(arguments[0]).length", selector)

    move = "((slider) => { slider.value = arguments[0]; slider.dispatchEvent(new Event('input')); })(arguments[1])"
    slider = browser.find_element("id", "threshold")
    assert count("rect.detection") == len(DETECTIONS)
    browser.execute_script(move, 0.5, slider)
    assert count("rect.detection") == 2 and browser.find_element("id", "count").text == "2 of 5 detections"
    assert (count("rect.truth"), count("img")) == (1, 0)
    browser.execute_script(move, 0, slider)
    assert count("rect.detection") == len(DETECTIONS) + 1
