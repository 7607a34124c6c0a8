"""The boards and alerts against real data: every query of every panel, variable and alert.

Real services, a real Prometheus, a job and some streams (session.py). A panel must have data, the
right kind of it, and never a NaN; alerts must be inactive; docs/metrics.md must be what is exported.
"""
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import metrics_doc  # noqa: E402
from session import ROOT, Session, poll  # noqa: E402

BOARDS = {path.stem: json.loads(path.read_text())
          for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))}
# Panels that are empty while all is well, which is what they then say.
EMPTY = {"What fires", "Since last progress"}
# Of stat panels, what they must show after what session.py did: exactly, between two values, or
# nothing.
SHOWN = {
    ("overview", "Services down"): 0, ("overview", "Alerts firing"): 0,
    ("overview", "Failed requests"): 0, ("overview", "First token, p95"): (1e-4, 10),
    ("overview", "Tokens out"): (0.1, 1e5), ("overview", "Jobs waiting"): 0,
    ("overview", "Workers up"): 1, ("overview", "Least disk free"): (1, 1e16),
    ("jobs", "Jobs waiting"): 0, ("jobs", "Longest wait"): 0, ("jobs", "Jobs running"): 0,
    ("jobs", "Workers up"): 1, ("jobs", "Since last progress"): None, ("jobs", "Jobs failed"): 0,
    ("jobs", "Leases lost"): 0, ("jobs", "Quantizer restarts"): 0,
    ("inference", "Requests"): (0.01, 1e4), ("inference", "Failed"): 0,
    ("inference", "Turned away"): 0, ("inference", "First token, p95"): (1e-4, 10),
    ("inference", "First token in time"): (0.5, 1), ("inference", "Next token, p95"): (1e-4, 1),
    ("inference", "Next token in time"): (0.5, 1), ("inference", "Tokens out"): (0.1, 1e5),
    ("inference", "Loads that failed"): 0}
# Of other panels, series that must be among theirs, by their legend.
SERIES = {
    ("overview", "Requests by end"): {"cancelled", "max_output_tokens"},
    ("overview", "Requests turned away"): {"invalid", "no_model"},
    ("overview", "Jobs by state"): {"QUEUED", "RUNNING", "CANCELLING"},
    ("overview", "Jobs that ended"): {"SUCCEEDED "},
    ("overview", "Failed calls"): {"GenerateText INVALID_ARGUMENT", "GenerateText NOT_FOUND"},
    ("jobs", "Stage"): {"LOADING", "CALIBRATING", "BLOCK_AP", "E2E_QP", "PACKING", "EVALUATING",
                        "PUBLISHING"},
    ("jobs", "Store operations, p95"): {"create", "lease", "renew", "complete", "commit_blob"},
    ("inference", "Wasted work"): {"cancelled"},
    ("inference", "KV pages"): {"free", "used"},
    ("inference", "Memory of models"): {"source weights", "source kv", "mine weights", "mine kv"},
    ("inference", "Where the time goes"): {"queue", "prefill", "decode"}}


def panels():
    for name, board in BOARDS.items():
        for panel in board["panels"]:
            if panel["type"] != "row":
                yield name, panel


def expand(expr, values):
    """A query as Grafana sends it."""
    values = {"__rate_interval": "5m", "__range": "1h", **values}
    return re.sub(r"\$(\w+)", lambda match: values[match.group(1)], expr)


def defaults(board):
    return {variable["name"]: variable.get("allValue") or variable["current"]["value"]
            for variable in board["templating"]["list"]}


def legend(target, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match.group(1), ""),
                  target["legendFormat"])


class ObservabilityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.session = cls.enterClassContext(Session())
        cls.session.drive()
        done = cls.session.output_tokens
        poll("Prometheus' last scrape", lambda: cls.value("sum(quern_generated_tokens_total)") >= done
             and cls.value('quern_jobs{state="SUCCEEDED"}') == 2
             and cls.value("max(quern_job_last_progress_timestamp_seconds)") == 0
             and cls.value("sum(quern_requests_running)") == 0)
        cls.session.settle()

    @classmethod
    def value(cls, expr):
        found = cls.session.instant(expr)
        return found[0][1] if found else math.nan

    def rows(self, target, values):
        """Labels and the values of each series of a panel's query, as Grafana asks for them."""
        expr = expand(target["expr"], values)
        if target["instant"]:
            return [(labels, [value]) for labels, value in self.session.instant(expr)]
        return [(labels, [value for _, value in samples])
                for labels, samples in self.session.over_time(expr)]

    def test_every_panel_has_data(self):
        for name, panel in panels():
            for target in panel["targets"]:
                with self.subTest(board=name, panel=panel["title"], query=target["refId"]):
                    rows = self.rows(target, defaults(BOARDS[name]))
                    if panel["title"] not in EMPTY:
                        self.assertTrue(rows, target["expr"])
                    for labels, values in rows:
                        for value in values:
                            self.assertTrue(math.isfinite(value), (target["expr"], labels, value))
                            self.assertGreaterEqual(value, 0, target["expr"])

    def test_panels_show_what_was_done(self):
        found = {(name, panel["title"]): panel for name, panel in panels()}
        self.assertEqual({key for key, panel in found.items() if panel["type"] == "stat"},
                         set(SHOWN))
        for key, wanted in SHOWN.items():
            with self.subTest(panel=key):
                rows = self.rows(found[key]["targets"][0], defaults(BOARDS[key[0]]))
                if wanted is None:
                    self.assertEqual(rows, [])
                    continue
                self.assertEqual(len(rows), 1)
                low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
                self.assertGreaterEqual(rows[0][1][-1], low)
                self.assertLessEqual(rows[0][1][-1], high)
        for key, wanted in SERIES.items():
            with self.subTest(panel=key):
                legends = {legend(target, labels) for target in found[key]["targets"]
                           for labels, _ in self.rows(target, defaults(BOARDS[key[0]]))}
                self.assertLessEqual(wanted, legends)

    def test_panels_heed_the_chosen_instance_and_model(self):
        instance = self.session.metrics_address("quern-inference")
        for name, panel in panels():
            if name != "inference":
                continue
            for target in panel["targets"]:
                values = {**defaults(BOARDS[name]), "instance": instance, "model": "mine"}
                with self.subTest(panel=panel["title"], query=target["refId"]):
                    self.rows(target, values)  # A query that does not parse fails.
                    absent = {**values, "instance": "nowhere"}
                    shown = [row for row in self.rows(target, absent) if set(row[1]) != {0.0}]
                    self.assertEqual(shown, [], "the query does not ask for $instance")

    def test_variables_offer_what_is_there(self):
        wanted = {("overview", "instance"): {self.session.metrics_address(s) for s in Session.SERVICES},
                  ("jobs", "instance"): {self.session.metrics_address("quern-jobs"),
                                         self.session.metrics_address("quern-worker")},
                  ("inference", "instance"): {self.session.metrics_address("quern-inference")},
                  ("inference", "model"): {"source", "mine"}}
        for (name, variable), expected in wanted.items():
            definition = next(v for v in BOARDS[name]["templating"]["list"] if v["name"] == variable)
            metric, label = re.fullmatch(r"label_values\((.*), (\w+)\)",
                                         definition["query"]["query"]).groups()
            values = self.session.api(f"label/{label}/values",
                                      **{"match[]": expand(metric, defaults(BOARDS[name]))})
            self.assertEqual(set(values), expected, (name, variable))

    def test_objectives_are_buckets(self):
        for variable, histogram in (("ttft_slo", "quern_time_to_first_token_seconds"),
                                    ("itl_slo", "quern_inter_token_latency_seconds")):
            chosen = next(v for v in BOARDS["inference"]["templating"]["list"]
                          if v["name"] == variable)
            buckets = {labels["le"] for labels, _ in self.session.instant(f"{histogram}_bucket")}
            self.assertLessEqual({option["value"] for option in chosen["options"]}, buckets)

    def test_counters_are_what_callers_saw(self):
        session = self.session
        # What its caller cancelled had sometimes ended just before the server heard of it.
        counted = {labels["outcome"]: value for labels, value in self.session.instant(
            "sum by (outcome) (quern_requests_total) > 0")}
        cancelled, invalid = counted.pop("cancelled"), counted.pop("invalid_argument")
        self.assertEqual(set(counted), set(session.outcomes))
        self.assertEqual(sum(counted.values()) + cancelled,
                         sum(session.outcomes.values()) + session.cancelled)
        self.assertLessEqual(cancelled, session.cancelled)
        self.assertLess(invalid, session.refused)
        self.assertEqual(self.value("sum(quern_requests_rejected_total)"), session.refused)
        self.assertEqual(self.value('sum(quern_requests_total{outcome="internal"})'), 0)
        # Cancelled streams generated some too.
        self.assertGreaterEqual(self.value("sum(quern_prompt_tokens_total)"), session.prompt_tokens)
        self.assertEqual(self.value("sum(quern_request_decode_seconds_count)"),
                         sum(counted.values()))
        blocks = self.value("quern_block_seconds_count")
        self.assertEqual(self.value("quern_checkpoints_written_total"), blocks)
        self.assertGreater(blocks, 0)

    def test_alerts_are_well_and_inactive(self):
        free = shutil.disk_usage(self.session.directory).free
        groups = self.session.api("rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        self.assertEqual([rule for rule in rules if rule["health"] != "ok"], [])
        alerts = [rule for rule in rules if rule["type"] == "alerting"]
        self.assertGreaterEqual(len(alerts), 20)
        for rule in alerts:
            if rule["name"] in ("QuernDiskLow", "QuernDiskFull") and free < 11 << 30:
                continue  # It is right.
            with self.subTest(alert=rule["name"]):
                self.assertEqual(rule["state"], "inactive", rule["alerts"])
                self.assertEqual(self.session.instant(rule["query"]), [])
        for rule in rules:
            if rule["type"] == "recording":
                with self.subTest(record=rule["name"]):
                    (_, value), = self.session.instant(rule["name"])
                    self.assertTrue(0 <= value <= 0.5, value)

    def test_metrics_are_described(self):
        scrapes = {service: self.session.scrape(service) for service in Session.SERVICES}
        text = metrics_doc.PATH.read_text()
        self.assertEqual(metrics_doc.render(scrapes), text, "run tests/deploy/metrics_doc.py --write")
        for service, scrape in scrapes.items():
            with self.subTest(service=service):
                lint = subprocess.run(["promtool", "check", "metrics"], input=scrape, text=True,
                                      capture_output=True)
                self.assertEqual((lint.returncode, lint.stdout + lint.stderr), (0, ""))
                lines = [line for line in scrape.splitlines() if not line.startswith("#")]
                print(f"{service}: {len(lines)} series")
                self.assertLessEqual(len(lines), 1000)

    def test_scrapes_are_quick(self):
        for service in Session.SERVICES:
            name = f'min_over_time(scrape_duration_seconds{{job="{service}"}}[1h])'
            print(f"{service}: fastest scrape {self.value(name) * 1000:.1f} ms")
            self.assertLessEqual(self.value(name), 0.02)


if __name__ == "__main__":
    unittest.main(verbosity=2)
