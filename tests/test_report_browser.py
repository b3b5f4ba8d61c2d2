"""The HTML report in headless Chromium: charts, viewer, sorting, phone and print."""

# ruff: noqa: F811 - fixtures are arguments

import json

import pytest

from eval.html_report.finished_run import read_runs
from eval.html_report.page import render_report
from tests.browser import open_browser, press, script, wait_until
from tests.test_report import (
    DATABASE,
    DURATION,
    EVIL,
    RATE,
    dataset,  # noqa: F401 - a fixture
    make_run,
    run,  # noqa: F401 - a fixture
    run_script,
)


@pytest.fixture(scope="module")
def browser(run, dataset, tmp_path_factory):
    """Headless Chromium on the report of two runs."""
    folder = tmp_path_factory.mktemp("browser")
    driver = open_browser(folder / "profile")
    try:
        other = make_run(folder / "other", dataset, seed=1)
        page = folder / "report.html"
        page.write_text(render_report(read_runs([run, other])), encoding="utf-8")
        for name, words in {"scored": ["--ground-truth", str(dataset)], "unscored": []}.items():
            assert run_script(run / "detections.json", *words, "--out", folder / f"{name}.html").returncode == 0
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def shown_video(browser) -> str:
    return script(browser, "document.getElementById('timeline').dataset.video")


def shown_range(browser) -> list[float]:
    return script(browser, "document.getElementById('timeline').layout.xaxis.range")


def click(browser, name: str) -> None:
    script(browser, "document.getElementById(arguments[0]).click()", name)


def to_viewer(browser) -> None:
    script(browser, "document.getElementById('videos').scrollIntoView({behavior: 'instant'})")


def test_browser_opens_the_page_without_an_error(browser):
    wait_until(lambda: script(browser, "document.querySelectorAll('.chart .main-svg').length") > 10)
    assert script(browser, "performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []


def test_browser_shows_the_numbers_of_metrics_json(browser, run):
    metrics = json.loads((run / "metrics.json").read_text())
    for protocol in ("snippet", "seconds"):
        for checkpoint, scores in metrics.items():
            row = f"table[data-protocol={protocol}] tr[data-run='run & co'][data-checkpoint={checkpoint}] td"
            cells = script(browser, "[...document.querySelectorAll(arguments[0])].map((cell) => cell.innerText)", row)
            assert cells[:9] == [f"{100 * value:.2f}" for value in scores[protocol]["map"]]


def test_browser_class_bars_are_metrics_json(browser, run):
    result = json.loads((run / "metrics.json").read_text())["last"]["snippet"]
    at = result["tiou_thresholds"].index(0.5)
    bars = script(browser, "document.getElementById('class-chart').data[0].x")
    assert sorted(bars) == pytest.approx(sorted(100 * value for value in result["ap"][at]))


def test_browser_viewer_switches_the_video(browser):
    names, right, left = list(DATABASE), "\ue014", "\ue012"
    to_viewer(browser)
    assert shown_video(browser) == names[0]
    click(browser, "next")
    assert shown_video(browser) == names[1] == EVIL
    assert EVIL in browser.find_element("id", "video-summary").text
    press(browser, right)
    assert shown_video(browser) == names[2]
    press(browser, left)
    click(browser, "previous")
    assert shown_video(browser) == names[0]
    browser.find_element("css selector", "#video option[value='3']").click()
    assert shown_video(browser) == "no detections"
    script(browser, "document.querySelector('#video-table tr[data-video=\"0\"]').click()")
    assert shown_video(browser) == names[0]


def test_browser_viewer_zooms(browser):
    to_viewer(browser)
    click(browser, "whole")
    assert shown_range(browser) == [0, DURATION]
    click(browser, "zoom-in")
    assert shown_range(browser) == [DURATION / 4, 3 * DURATION / 4]
    press(browser, "+")
    start, end = shown_range(browser)
    assert end - start == DURATION / 4
    click(browser, "later")
    assert shown_range(browser)[0] > start
    press(browser, "0")
    assert shown_range(browser) == [0, DURATION]


def test_browser_viewer_zooms_by_the_mouse(browser):
    chains = pytest.importorskip("selenium.webdriver.common.action_chains", reason="selenium is not installed")
    timeline = browser.find_element("id", "timeline")
    script(browser, "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", timeline)
    mouse = chains.ActionChains(browser)
    mouse.move_to_element_with_offset(timeline, -200, 100).click_and_hold().move_by_offset(150, 0).release().perform()
    start, end = shown_range(browser)
    assert 0 < start < end < DURATION

    def zooms_out() -> bool:  # the clicks of a slow browser may be too far apart
        if shown_range(browser) != [0, DURATION]:
            mouse = chains.ActionChains(browser)
            mouse.move_to_element_with_offset(timeline, -200, 100).double_click().perform()
        return shown_range(browser) == [0, DURATION]

    wait_until(zooms_out)


def test_browser_viewer_draws_the_outputs_of_the_run(browser):
    to_viewer(browser)
    traces = script(browser, "document.getElementById('timeline').data.map((t) => [t.type || 'line', t.x.length])")
    dives = [row for row in DATABASE["plain"] if row[0] == "Dive"]
    assert ["bar", len(dives)] in traces
    lines = [count for kind, count in traces if count == int(DURATION * RATE)]
    assert len(lines) == 2 * (3 + 2)  # two runs, each with three attentions and the T-CAM of two classes
    script(browser, "document.querySelector('#class-choice input:checked').click()")
    fewer = script(browser, "document.getElementById('timeline').data.length")
    assert fewer < len(traces)
    script(browser, "document.querySelector('#class-choice input:not(:checked)').click()")


def test_browser_list_sorts(browser):
    def column(place: int) -> list[str]:
        code = "[...document.querySelectorAll('#video-table tbody tr')].map((row) => row.cells[arguments[0]].innerText)"
        return script(browser, code, place)

    click_heading = "document.querySelector(`#video-table button[data-column='${arguments[0]}']`).click()"
    script(browser, click_heading, "ap0")
    values = [float(text) for text in column(3)]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    script(browser, click_heading, "ap0")
    assert [float(text) for text in column(3)] == sorted(values)
    script(browser, click_heading, "missed")
    missed = [int(text) for text in column(5)]
    assert missed == sorted(missed, reverse=True)
    script(browser, click_heading, "position")
    assert column(0) == list(DATABASE)


def assert_fits_a_phone(browser) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        # charts follow the window with a delay
        wait_until(lambda: script(browser, "document.documentElement.scrollWidth") <= 390)
        wide = "[...document.querySelectorAll('main *')].filter((node) => node.getBoundingClientRect().right > 391)"
        outside = f"{wide}.filter((node) => !node.closest('.table-box')).map((node) => node.outerHTML.slice(0, 200))"
        wait_until(lambda: script(browser, outside) == [])
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_browser_fits_a_phone_and_prints(browser):
    assert_fits_a_phone(browser)
    assert len(browser.print_page()) > 10_000
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("name", ["scored", "unscored"])
def test_browser_shows_files_of_detections(browser, name):
    address = browser.current_url
    browser.get(address.replace("report.html", f"{name}.html"))
    try:
        wait_until(lambda: shown_video(browser) == "plain")
        click(browser, "next")
        wait_until(lambda: shown_video(browser) == EVIL)
        heads = script(browser, "[...document.querySelectorAll('#video-table th')].map((head) => head.innerText)")
        assert ("best class" in heads, "missed" in heads) == ((False, True) if name == "scored" else (True, False))
        bars = script(
            browser, "document.getElementById('timeline').data.filter((trace) => trace.type === 'bar').length"
        )
        assert bars >= (2 if name == "scored" else 1)
        assert_fits_a_phone(browser)
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        browser.get(address)
