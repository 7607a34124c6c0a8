"""Boards, rules, the Compose file and their documentation against each other; needs no service.

What promtool, docker-compose and Grafana's schema say, that the boards are what boards.py makes, that
every alert is tested and has a runbook, and that every metric that is asked for is one that
docs/metrics.md has.
"""
import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import grafana_schema  # noqa: E402
import metrics_doc  # noqa: E402
from grafana_foundation_sdk.models import dashboard  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
ALERTS, TESTS = PROMETHEUS / "alerts.yml", ROOT / "tests" / "deploy" / "alerts_test.yml"
BOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
GRAFANA_UNITS = {"short", "s", "bytes", "percentunit", "reqps", "cps", "sci"}


def alert_names():
    return re.findall(r"- alert: (\w+)", ALERTS.read_text())


def metrics_in(text):
    """Metrics of ours in PromQL, histograms without their suffix, and recorded names."""
    # `rate_interval`, `grpc_method` and the like are labels and variables.
    found = set(re.findall(r"\b(?:quern|process)_\w+|\bgrpc_(?:server|client)_\w+", text))
    described = metrics_doc.names(metrics_doc.PATH.read_text())
    return {name if name in described else re.sub(r"_(bucket|sum|count)$", "", name)
            for name in found}


class StaticTest(unittest.TestCase):
    def run_tool(self, *command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_prometheus_takes_its_files(self):
        for name in ("prometheus.yml", "prometheus.compose.yml"):
            self.run_tool("promtool", "check", "config", PROMETHEUS / name)
        # Its token and its CA are there in the container only.
        self.run_tool("promtool", "check", "config", "--syntax-only",
                      PROMETHEUS / "prometheus.compose.tls.yml")
        self.run_tool("promtool", "check", "rules", PROMETHEUS / "rules.yml", ALERTS)

    def compose(self, *overrides):
        """The stack as docker-compose resolves it with the settings of .env.example. (podman-compose, which
        asks podman for its version even here, is run by tests/deploy/run.sh.)"""
        env = {key: value for key, value in os.environ.items() if not key.startswith("QUERN_")}
        files = [part for name in ("compose.yaml", *overrides)
                 for part in ("-f", ROOT / "deploy" / name)]
        done = subprocess.run(["docker-compose", "--env-file", ROOT / "deploy" / ".env.example", *files,
                               "--profile", "gpu", "--profile", "cli", "config"],
                              capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return yaml.safe_load(done.stdout)

    def test_compose_takes_its_file(self):
        self.assertEqual(set(self.compose()["services"]),
                         {"jobs", "worker", "worker-gpu", "inference", "cli", "prometheus", "grafana"})

    def test_compose_is_safe_by_default(self):
        stack = self.compose()
        self.assertTrue(stack["networks"]["services"]["internal"])
        for name, service in stack["services"].items():
            with self.subTest(service=name):
                for port in service.get("ports", []):
                    self.assertTrue(str(port).startswith("127.0.0.1:"), port)
                self.assertIn("services", service["networks"])
                self.assertGreater(float(service["cpus"]), 0)
                self.assertTrue(service["mem_limit"])
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertIn("no-new-privileges:true", service["security_opt"])
                if "build" in service:
                    self.assertEqual(service["user"], "10001:10001")
                    self.assertEqual(service["stop_grace_period"], "60s")
                    # The images have them, and podman-compose would join the words of one here and one
                    # of compose.tls.yaml.
                    self.assertNotIn("healthcheck", service)

    def test_compose_with_tls_lets_nothing_in_the_clear(self):
        plain = self.compose()["services"]
        for name, service in self.compose("compose.tls.yaml")["services"].items():
            with self.subTest(service=name):
                words = service.get("command") or []
                self.assertNotIn("--allow-insecure-network", words)
                if name in ("jobs", "worker", "worker-gpu", "inference"):
                    self.assertIn("--tls-cert=/run/quern/tls/tls.crt", words)
                    self.assertIn("--auth-tokens=/run/quern/tokens", words)
                    self.assertIn("--tls-ca=/run/quern/ca.crt", service["healthcheck"]["test"])
                    # What else a service is told, it is told in both.
                    self.assertLessEqual(set(plain[name]["command"]) - {"--allow-insecure-network"},
                                         set(words))

    def test_every_alert_fires_and_does_not(self):
        self.run_tool("promtool", "test", "rules", TESTS)
        cases = TESTS.read_text().split("  - name: ")[1:]
        for alert in alert_names():
            own = [case for case in cases if f'alertname="{alert}",alertstate="firing"' in case]
            self.assertTrue(own, f"{alert} never fires in {TESTS.name}")
            self.assertTrue(any("exp_samples: []" in case for case in own),
                            f"{alert} always fires in {TESTS.name}")

    def test_every_alert_says_what_it_is(self):
        rules = ALERTS.read_text().split("- alert: ")[1:]
        runbook = (ROOT / "docs" / "operations.md").read_text()
        anchors = {heading.lower().replace(" ", "-")
                   for heading in re.findall(r"^#+ (.*)$", runbook, re.MULTILINE)}
        self.assertEqual(len(rules), len(set(alert_names())))
        for rule in rules:
            name = rule.split()[0]
            with self.subTest(alert=name):
                self.assertRegex(rule, r"severity: (critical|warning) ")
                self.assertRegex(rule, r"\n +summary: \S")
                self.assertRegex(rule, r"\n +description: \S")
                self.assertIn(f"runbook_url: docs/operations.md#{name.lower()}\n", rule)
                self.assertIn(name.lower(), anchors)

    def test_boards_are_what_their_source_says(self):
        self.run_tool(sys.executable, GRAFANA / "boards.py", "--check")

    def test_boards_fit_grafanas_schema(self):
        self.run_tool(sys.executable, ROOT / "tests" / "deploy" / "grafana_schema.py", *BOARDS)

    def test_the_schema_check_finds_mistakes(self):
        board = json.loads(BOARDS[0].read_text())

        def problems(change):
            changed = copy.deepcopy(board)
            change(changed)
            return list(grafana_schema.check(changed, dashboard.Dashboard, "board"))

        first = next(i for i, panel in enumerate(board["panels"]) if panel["type"] == "stat")
        self.assertEqual(problems(lambda b: None), [])
        self.assertEqual(len(problems(lambda b: b.update(titel="x"))), 1)
        self.assertEqual(len(problems(lambda b: b["panels"][first].update(title=3))), 1)
        self.assertEqual(len(problems(
            lambda b: b["panels"][first]["options"].update(colorMode="loud"))), 1)
        self.assertEqual(len(problems(
            lambda b: b["panels"][first]["targets"][0].update(expression="up"))), 1)

    def test_panels_can_be_understood(self):
        for path in BOARDS:
            board, places, ids = json.loads(path.read_text()), set(), set()
            for panel in board["panels"]:
                with self.subTest(board=path.stem, panel=panel["title"]):
                    self.assertNotIn(panel["id"], ids)
                    ids.add(panel["id"])
                    place = panel["gridPos"]
                    cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                             for y in range(place["y"], place["y"] + place["h"])}
                    self.assertFalse(cells & places, "panels overlap")
                    self.assertLessEqual(place["x"] + place["w"], 24)
                    places |= cells
                    if panel["type"] == "row":
                        continue
                    defaults = panel["fieldConfig"]["defaults"]
                    self.assertGreaterEqual(len(panel["description"]), 20)
                    self.assertTrue(defaults["noValue"])
                    self.assertIn(defaults["unit"], GRAFANA_UNITS)
                    self.assertTrue(panel["targets"])
                    for target in panel["targets"]:
                        self.assertEqual(target["datasource"]["uid"], "prometheus")
                        # A division by what may be zero is a NaN unless it is dropped.
                        if " / " in target["expr"] or "histogram_quantile" in target["expr"]:
                            self.assertTrue(target["expr"].endswith(">= 0"), target["expr"])

    def test_metrics_that_are_asked_for_exist(self):
        described = metrics_doc.names(metrics_doc.PATH.read_text())
        self.assertGreater(len(described), 40)
        for path in [*BOARDS, ALERTS, PROMETHEUS / "rules.yml", TESTS,
                     ROOT / "docs" / "operations.md"]:
            text = path.read_text()
            if path.suffix == ".json":
                board = json.loads(text)
                text = "\n".join([target["expr"] for panel in board["panels"]
                                  for target in panel.get("targets", [])] +
                                 [json.dumps(board["templating"])])
            with self.subTest(file=path.name):
                self.assertEqual(metrics_in(text) - described, set())
        recorded = set(re.findall(r"- record: (\S+)", (PROMETHEUS / "rules.yml").read_text()))
        used = set(re.findall(r"\bquern:\w+:\w+", ALERTS.read_text()))
        self.assertEqual(used, recorded)


if __name__ == "__main__":
    unittest.main(verbosity=2)
