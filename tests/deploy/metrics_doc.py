#!/usr/bin/env python3
"""docs/metrics.md, made from what the services really export.

  tests/deploy/metrics_doc.py --write    runs a small deployment and writes the file
  tests/deploy/metrics_doc.py --check    fails when the file says something else

Needs a build and the virtual environment of deploy/install.sh --tests.
"""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from session import ROOT, Session  # noqa: E402

PATH = ROOT / "docs" / "metrics.md"
HEAD = """# Metrics

What the services tell Prometheus, each at `/metrics` of its `--metrics-listen` address. This file is
made from their answers by `tests/deploy/metrics_doc.py --write`; a test fails when it differs.

Names follow Prometheus' rules: base units, `_total` for counters. A histogram also has `_bucket`
(with the label `le`), `_sum` and `_count`. Labels have few values: never the name of a job or of a
request. A series exists from the start of its service, so that its first event counts; those of
models begin with the load, those of workers and RPCs with the first of each.

**How many series.** At most 1,000 for each service, unless more than three models are in memory or
more than 200 workers come. `model` is the name that a model was loaded under; it has about 170
series. Those of a model that was unloaded stay, and go on when the name is loaded again, as long as
there are no more than three models with series; then the one that was unloaded first is forgotten.
Workers that quern-jobs has not heard of for an hour are forgotten; it counts 256 at most.
"""


def parse(scrape):
    """name -> [type, help, label names] of one scrape."""
    metrics = {}
    for line in scrape.splitlines():
        if line.startswith("# HELP "):
            name, text = line[7:].split(" ", 1)
            metrics.setdefault(name, ["", "", set()])[1] = text
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ", 1)
            metrics.setdefault(name, ["", "", set()])[0] = kind
        elif line:
            name, labels = re.match(r"([a-zA-Z_:]+)(?:\{(.*)\})? ", line).groups()
            if name not in metrics:
                name = re.sub(r"_(bucket|sum|count)$", "", name)
            metrics[name][2].update(set(re.findall(r'(\w+)="', labels or "")) - {"le"})
    return metrics


def render(scrapes):
    """`scrapes`: service -> text. Metrics that all services have come last."""
    parsed = {service: parse(text) for service, text in scrapes.items()}
    common = set.intersection(*(set(metrics) for metrics in parsed.values()))
    sections = [(service, {name: metric for name, metric in metrics.items() if name not in common})
                for service, metrics in parsed.items()]
    sections.append(("Every service", {name: metrics[name] for metrics in parsed.values()
                                       for name in common}))
    parts = [HEAD]
    for title, metrics in sections:
        parts.append(f"\n## {title}\n\n| name | type | labels | what |\n|---|---|---|---|\n")
        for name, (kind, text, labels) in sorted(metrics.items()):
            labels = ", ".join(f"`{label}`" for label in sorted(labels))
            parts.append(f"| `{name}` | {kind} | {labels} | {text} |\n")
    return "".join(parts)


def names(text):
    """Every metric that a text of docs/metrics.md describes."""
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def main():
    if sys.argv[1:] not in (["--write"], ["--check"]):
        sys.exit(__doc__)
    with Session(with_prometheus=False) as session:
        session.drive()
        text = render({service: session.scrape(service) for service in Session.SERVICES})
    if sys.argv[1] == "--write":
        PATH.write_text(text)
    elif PATH.read_text() != text:
        sys.exit("docs/metrics.md differs from what the services export; run "
                 "tests/deploy/metrics_doc.py --write")


if __name__ == "__main__":
    main()
