#!/usr/bin/env python3
"""Has a real Prometheus scrape a real run, by the configuration in deploy/prometheus, and asks it what the Grafana dashboard
and the alerts ask.

    tests/metrics/scrape.py --bin target/release

Needs prometheus and promtool (Debian's package prometheus).
"""

import argparse
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from small_run import Run, check, make_data, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
CONFIG = ROOT / "deploy/prometheus/prometheus.yml"
DASHBOARD = ROOT / "deploy/grafana/relabel.json"
SOURCE = ROOT / "coordinator/src/metrics/prometheus.rs"

# What has no answer at times: nothing is validated at most moments, and there is no GPU here.
AT_TIMES = ("Validation under way", "Memory of workers")

# What stands for the dashboard's variables.
VARIABLES = {"$instance": ".+", "$__rate_interval": "1m", "$__interval": "15s", "$__range": "1h"}


def promtool(*command, stdin=None):
    done = subprocess.run(["promtool", *command], input=stdin, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def metrics_are_well_named(url):
    with urllib.request.urlopen(url + "metrics", timeout=30) as answer:
        text = answer.read().decode()
        check("the text format's type", answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers)
    code, words = promtool("check", "metrics", stdin=text)
    check("promtool has nothing to say", code == 0 and not words, words)
    broken = text.replace("# TYPE relabel_steps_total counter", "# TYPE relabel_steps_total gauge")
    check("promtool does look", promtool("check", "metrics", stdin=broken)[1] != "")
    return set(re.findall(r"^# TYPE (\S+)", text, re.M))


class Prometheus:
    """A server that scrapes `address`, and looks at its alerts, as deploy/prometheus/prometheus.yml says, but more often."""

    def __init__(self, scratch, address):
        config = CONFIG.read_text()
        assert "127.0.0.1:4748" in config and config.count("_interval: 15s") == 2 and "- alerts.yml" in config, config
        config = config.replace("127.0.0.1:4748", address).replace("_interval: 15s", "_interval: 1s")
        file = scratch / "prometheus.yml"
        file.write_text(config.replace("- alerts.yml", f"- {ALERTS}"))
        code, words = promtool("check", "config", str(file))
        check("promtool takes the configuration and its alerts", code == 0 and "rules found" in words, words)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.base = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = scratch / "prometheus.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(["prometheus", f"--config.file={file}", f"--storage.tsdb.path={scratch / 'tsdb'}",
                f"--web.listen-address={self.base[7:]}"], stdout=log, stderr=log)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.base}/-/ready", timeout=30) as answer:
                return answer.status == 200
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def ask(self, path, **arguments):
        query = urllib.parse.urlencode(arguments)
        try:
            with urllib.request.urlopen(f"{self.base}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {json.load(error)['error']}") from None

    def value(self, expression):
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def expressions():
    """What the dashboard asks, panel by panel."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    check("the dashboard's panels have numbers of their own", len(set(ids)) == len(ids))
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, f"{panel['title']} overlaps"
        taken |= cells
    for panel in panels:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression, expression
            yield panel["title"], expression


def asked(prometheus, names):
    """Each expression is valid, asks for metrics that there are, and has an answer, unless it is about what may not be."""
    empty = []
    for title, expression in expressions():
        for name in set(re.findall(r"\b((?:relabel|process)_[a-z0-9_]+)", expression)):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            known = {name, base} & names or f'"{name}"' in SOURCE.read_text() and title in AT_TIMES
            assert known, f"{title} asks for {name}, which there is not"
        if not prometheus.ask("query", query=expression)["result"]:
            empty.append(title)
    surprising = [title for title in empty if title not in AT_TIMES]
    check("every panel of the dashboard has an answer", not surprising, surprising)


def alerts_fire(scratch):
    """By promtool's own unit tests."""
    code, words = promtool("test", "rules", str(ROOT / "tests/metrics/alerts_test.yml"))
    check("the alerts fire when they should, and not else", code == 0 and "SUCCESS" in words, words)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True, help="folder of the two programs")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="relabel-scrape-") as folder:
        scratch = pathlib.Path(folder)
        make_data(args.bin, scratch)
        run = Run(args.bin, scratch, "run", **{"optim.epochs": 60})
        prometheus = None
        try:
            url = run.url()
            run.find("epoch 1/60  train loss")
            run.find("checkpoint resnet18")
            names = metrics_are_well_named(url)
            prometheus = Prometheus(scratch, url.split("/")[2])
            wait_for("Prometheus", prometheus.is_ready, 60)
            wait_for("a first sample", lambda: prometheus.value("up") == 1 and prometheus.value("relabel_images_total"), 60)
            check("the target is up and is scraped", True)
            first = prometheus.value("relabel_images_total")
            wait_for("more images", lambda: prometheus.value("relabel_images_total") > first)
            wait_for("a rate", lambda: prometheus.value("rate(relabel_images_total[1m])"))
            with urllib.request.urlopen(url + "api/view", timeout=30) as answer:
                view = json.load(answer)
            scraped = prometheus.value("relabel_best_top1_ratio")
            check("the numbers are the run's", prometheus.value("relabel_workers") == 2 and prometheus.value("relabel_run_epochs") == 60
                and 0 <= scraped <= view["best_top1"], scraped, view["best_top1"])
            quantile = prometheus.value("histogram_quantile(0.5, rate(relabel_step_seconds_bucket[1m]))")
            check("steps' lengths as a quantile", quantile is not None and 0 < quantile < 60, quantile)
            time.sleep(2)
            asked(prometheus, names)
            def evaluated():
                rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
                return rules if all(rule["health"] != "unknown" for rule in rules) else None

            rules = wait_for("a first look at every alert", evaluated)
            check("every alert can be evaluated", all(rule["health"] == "ok" for rule in rules), rules)
        finally:
            if prometheus:
                prometheus.stop()
            run.stop()
        alerts_fire(scratch)
    print("scrape: Prometheus reads the run, Grafana's questions have answers, and the alerts fire")


if __name__ == "__main__":
    main()
