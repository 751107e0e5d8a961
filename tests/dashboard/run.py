#!/usr/bin/env python3
"""Looks at the dashboard of a real run in headless Chromium, as people use it: with the eyes, in the light and in the dark, on
a phone, by keyboard, and through what a screen reader is told. Leaves screenshots.

    tests/dashboard/run.py --bin target/release --axe .watch/axe.min.js --out target/dashboard

Needs chromium and chromium-driver (Debian's packages), and axe-core's axe.min.js, which `make watch-test` fetches.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import time
import urllib.request

from browser import Browser

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "metrics"))
from small_run import Run, check, make_data


def shows_the_run(browser, run):
    browser.wait_for("two validated epochs in the chart of top-1", """
        return document.querySelectorAll('#chart-top1 circle.c0').length >= 2""", within=300)
    browser.wait_for("a checkpoint", "return document.querySelector('#checkpoints-table tbody th')?.innerText.includes('safetensors')")
    page = browser.run("""
        const text = (selector) => document.querySelector(selector).innerText;
        const count = (selector) => document.querySelectorAll(selector).length;
        return {
            name: text('#name'), phase: text('#phase'), place: text('#place'), link: text('#link'),
            bar: document.querySelector('#progress').value,
            tiles: Object.fromEntries([...document.querySelectorAll('#tiles div')].map((tile) => tile.innerText.split('\\n').slice(0, 2))),
            workers: text('#workers-table'), rows: count('#workers-table tbody tr'),
            decisions: text('#decisions-list'), log: text('#log-lines'),
            paths: ['loss', 'lr', 'speed'].map((name) => document.querySelector(`#chart-${name} path.c0`)?.getAttribute('d').length ?? 0),
            pictures: [...document.querySelectorAll('#pictures img')].map((image) => [image.complete && image.naturalWidth, image.alt]),
        };""")
    view = json.load(urllib.request.urlopen(run.url() + "api/view"))
    check("name and phase", page["name"] == view["run_id"] and page["phase"] in ("training", "validating"), page)
    check("it is live", page["link"] == "live", page)
    check("place and bar", re.match(r"epoch \d+ of \d+, step \d+ of \d+, \d+%, .* left", page["place"]) and 0 < page["bar"] < 1, page)
    tiles = page["tiles"]
    check("tiles have numbers", all(any(c.isdigit() for c in tiles[name]) for name in
        ("Loss", "Top-1", "Best top-1", "Images a second", "A step", "Learning rate", "Workers")), tiles)
    check("a row for each worker", page["rows"] == 2 and all(worker["host"] in page["workers"] for worker in view["workers"]), page)
    check("where the workers' time goes", "computing" in page["workers"] and "peers" in page["workers"], page["workers"])
    check("decisions with their reason", "generation 1" in page["decisions"], page["decisions"])
    check("the log", "epoch 1/" in page["log"], page["log"])
    check("curves of loss, learning rate and speed", min(page["paths"]) > 100, page["paths"])
    browser.wait_for("pictures of label maps", """
        const images = [...document.querySelectorAll('#pictures img')];
        images.forEach((image) => { image.loading = 'eager'; });
        return images.length >= 2 && images.every((image) => image.complete && image.naturalWidth > 400 && image.alt.length > 20)""")
    check("pictures with words for those who do not see them", True)


def compares_runs(browser):
    before = browser.run("return document.querySelectorAll('#chart-loss path').length")
    browser.click("#draw-0001-first")
    browser.wait_for("the other run's curve", "return document.querySelectorAll('#chart-loss path').length > arguments[0]", before)
    check("the other run is named in the legend", "0001-first" in browser.text("#chart-loss .legend"))
    check("what differs is said", "optim.lr.init 0.02 (here 0.01)" in browser.text("#runs-table"), browser.text("#runs-table"))


def works_by_keyboard(browser, url):
    browser.open(url)
    browser.wait_for("the run", "return document.querySelectorAll('#workers-table button').length > 3")
    browser.press("Tab")
    focused = browser.run("return [document.activeElement.className, document.activeElement.getBoundingClientRect().top]")
    check("the first stop skips to the run, in sight", focused[0] == "skip" and focused[1] >= 0, focused)
    browser.press("Enter")
    check("it does", browser.run("return document.activeElement.id") == "main")
    browser.run("document.querySelector('#chart-loss .plot').focus()")
    browser.press("End")
    last = browser.text("#chart-loss .readout")
    browser.press("Left", "Left")
    earlier = browser.text("#chart-loss .readout")
    check("arrows read a chart", re.match(r"epoch [\d.]+: ", last) and last != earlier, last, earlier)
    check("who reads is told", browser.run("return document.querySelector('#chart-loss .readout').getAttribute('aria-live')") == "polite")
    for stop in range(60):
        browser.press("Tab")
        seen = browser.run("""
            const one = document.activeElement, style = getComputedStyle(one);
            return [one === document.body ? 'end' : one.outerHTML.slice(0, 80), style.outlineStyle, parseFloat(style.outlineWidth)]""")
        if seen[0] == "end":
            break
        assert seen[1] != "none" and seen[2] >= 1, f"the focus is not to be seen at {seen}"
    check("every stop shows the focus", stop > 8, stop)
    browser.run("document.querySelectorAll('#workers-table button')[0].focus()")
    browser.press("Enter")
    sort = "return document.querySelector('#workers-table th').getAttribute('aria-sort')"
    check("a heading sorts, and the keyboard stays on it", browser.run(sort) == "descending"
        and browser.run("return document.activeElement.textContent") == "rank", browser.run(sort))
    browser.run("document.querySelector('#chart-lr summary').focus()")
    browser.press("Enter")
    check("a chart is a table too", browser.wait_for("rows", "return document.querySelectorAll('#chart-lr tbody tr').length") > 3)


def works_out_its_numbers(browser):
    """What the page computes itself, in its own modules."""
    found = browser.call("POST", browser.session + "/execute/async", {"args": [], "script": """
        const done = arguments[arguments.length - 1];
        Promise.all([import('./assets/charts.js'), import('./assets/format.js')]).then(([charts, format]) => done({
            ticks: charts.ticks(0, 1, 5), whole: charts.ticks(0, 3, 9, 1), one: charts.ticks(2, 2, 5),
            flat: charts.range([2, 2], false), none: charts.range([null, NaN], true),
            outlier: charts.range([...Array(20).fill(0).map((_, n) => n / 10), 500], true)[1] < 5,
            wanted: charts.range([...Array(20).fill(0).map((_, n) => n / 10), 500], true, true)[1] > 500,
            smooth: charts.smoothed([[0, 1], [1, 3], [2, null], [3, 3]], 0.5).map((point) => point[1]),
            numbers: [0.00001234, 0.05, 1234567, null, NaN].map(format.number),
            durations: [5, 72, 7500, 280000, NaN].map(format.duration),
            short: [0.00002, 0.0125, 3, null].map(format.short), bytes: [12, 2e6, 3.5e9].map(format.bytes),
        })).catch((error) => done(String(error)))"""})
    wanted = {
        "ticks": [0, 0.2, 0.4, 0.6, 0.8, 1], "whole": [0, 1, 2, 3], "one": [2], "flat": [1, 3], "none": [0, 1], "outlier": True,
        "wanted": True, "smooth": [1, 7 / 3, None, 19 / 7], "numbers": ["1.23e-5", "0.05", "1235000", "–", "–"],
        "durations": ["5 s", "1 m 12 s", "2 h 05 m", "3 d 05 h", "–"], "short": ["20 µs", "13 ms", "3.00 s", "–"],
        "bytes": ["12 B", "2.0 MB", "3.5 GB"],
    }
    rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 9))
    wanted = json.loads(json.dumps(wanted), parse_float=lambda text: round(float(text), 9))
    check("axes, averages and numbers", rounded == wanted, found)


def is_accessible(browser, axe, where):
    browser.run(axe.read_text())
    found = browser.call("POST", browser.session + "/execute/async", {"args": [], "script": """
        const done = arguments[arguments.length - 1];
        axe.run().then((result) => done(result.violations.map((one) =>
            `${one.id} (${one.impact}): ${one.nodes.map((node) => node.target.join(' ')).slice(0, 3).join(', ')}`)))"""})
    check(f"axe has nothing to say, {where}", not found, found)


def fits(browser, where):
    width = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    check(f"nothing stands out, {where}", width[0] <= width[1], width)


def shots(browser, axe, out):
    time.sleep(1)
    browser.screenshot(out / "desktop-light.png")
    is_accessible(browser, axe, "in the light")
    browser.media(prefers_color_scheme="dark")
    time.sleep(0.5)
    browser.screenshot(out / "desktop-dark.png")
    is_accessible(browser, axe, "in the dark")
    ground = "return getComputedStyle(document.body).backgroundColor"
    dark = browser.run(ground)
    browser.run("const theme = document.querySelector('#theme'); theme.value = 'light'; theme.dispatchEvent(new Event('change'))")
    check("colours can be chosen", browser.run(ground) != dark)
    browser.run("const theme = document.querySelector('#theme'); theme.value = 'auto'; theme.dispatchEvent(new Event('change'))")
    for width, height, scheme in ((390, 844, "light"), (320, 640, "dark")):
        browser.media(prefers_color_scheme=scheme)
        browser.size(width, height, phone=True)
        time.sleep(1)
        fits(browser, f"{width} pixels wide")
        end = "const { scrollTop, clientHeight, scrollHeight } = document.querySelector('#log-lines'); return scrollHeight - clientHeight - scrollTop"
        follows = browser.run("return document.querySelector('#log-follow').checked"), browser.run(end)
        check(f"the log is at its end, {width} pixels wide", follows[0] and follows[1] < 30, follows)
        browser.screenshot(out / f"phone-{width}-{scheme}.png")
    is_accessible(browser, axe, "on a phone")
    browser.media(prefers_reduced_motion="reduce")
    still = browser.run("""
        return [getComputedStyle(document.documentElement).scrollBehavior, matchMedia('(prefers-reduced-motion: reduce)').matches]""")
    check("it keeps still where that is wished", still == ["auto", True], still)
    browser.media()
    browser.size(1280, 900)


def sees_a_loss(browser, run):
    """A worker is killed: the page says so, and that training goes on."""
    pid = browser.run("return Number(document.querySelector('#workers-table tbody tr:last-child td:nth-child(3)').innerText)")
    os.kill(pid, signal.SIGKILL)
    browser.wait_for("a warning among the decisions", "return document.querySelectorAll('#decisions-list .warning').length > 0")
    browser.wait_for("words for a screen reader", "return document.querySelector('#spoken').innerText.length > 10")
    browser.wait_for("a new generation", "return /generation [2-9]/.test(document.querySelector('#decisions-list').innerText)")
    check("a lost worker and the new generation are told", True)


def follows_to_the_end_and_back(browser, bin, scratch, run):
    address = run.url().split("/")[2]
    run.process.terminate()
    browser.wait_for("the end", "return document.querySelector('#link').innerText === 'the run is over'")
    check("how it ended is said", "SIGTERM" in browser.text("#reason"), browser.text("#reason"))
    run.process.wait(60)
    points = browser.run("return document.querySelectorAll('#chart-top1 circle.c0').length")
    resumed = Run(bin, scratch, "0002-second", "--resume", http=address)
    try:
        browser.wait_for("the run again", """
            return document.querySelector('#link').innerText === 'live' && document.querySelector('#phase').innerText === 'training'""")
        again = browser.wait_for("its curves", "return document.querySelectorAll('#chart-top1 circle.c0').length")
        check("the same page goes on with a resumed run", again >= points, points, again)
    finally:
        resumed.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the two programs")
    parser.add_argument("--axe", type=pathlib.Path, required=True, help="axe-core's axe.min.js")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the screenshots")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="relabel-dashboard-") as folder:
        scratch = pathlib.Path(folder)
        make_data(args.bin, scratch)
        first = Run(args.bin, scratch, "0001-first", workers=1, http="none", **{"optim.epochs": 2, "optim.lr.init": 0.02})
        check("a run without a dashboard", first.process.wait(300) == 0 and "dashboard and metrics" not in first.log.read_text(), first.log.read_text())
        run = Run(args.bin, scratch, "0002-second", **{"optim.epochs": 40, "optim.lr.init": 0.01, "util.log_images": 2})
        try:
            with Browser() as browser:
                browser.open(run.url())
                shows_the_run(browser, run)
                works_out_its_numbers(browser)
                compares_runs(browser)
                shots(browser, args.axe, args.out)
                works_by_keyboard(browser, run.url())
                sees_a_loss(browser, run)
                follows_to_the_end_and_back(browser, args.bin, scratch, run)
                complaints = [line for line in browser.complaints() if "ERR_CONNECTION_REFUSED" not in line and "ERR_INCOMPLETE" not in line]
                check("the browser has no complaint", not complaints, complaints)
        finally:
            run.stop()
    print(f"dashboard: all is well; look at {args.out}")


if __name__ == "__main__":
    main()
