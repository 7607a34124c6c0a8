#!/usr/bin/env python3
"""Draws the boards with data, without Grafana: one PNG for each, to look at while changing them.

  deploy/grafana/render.py --prometheus http://127.0.0.1:9090 --out DIRECTORY [--minutes 60]
  deploy/grafana/render.py --session --out DIRECTORY [--minutes 2]

The second runs a small deployment of its own for that long (tests/deploy/session.py; needs a build
and grpcio-tools). Both need matplotlib, which nothing else here does:

  python3 -m venv /tmp/render && /tmp/render/bin/pip install matplotlib grpcio grpcio-tools
"""
import argparse
import json
import math
import pathlib
import re
import time
import urllib.parse
import urllib.request

import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
COLORS = {"green": "#56a64b", "yellow": "#e0b400", "red": "#c4162a", "blue": "#3274d9",
          "text": "#888888", "transparent": "#2c3235"}
INK, PAPER, TILE = "#d8d9da", "#111217", "#1f2126"


def get(url, path, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
        return json.load(answer)["data"]["result"]


def human(value, unit):
    if value is None or not math.isfinite(value):
        return "?"
    if unit == "percentunit":
        return f"{100 * value:.1f} %"
    if unit == "bytes":
        for name in ("B", "KiB", "MiB", "GiB"):
            if value < 1024:
                return f"{value:.3g} {name}"
            value /= 1024
        return f"{value:.3g} TiB"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if 0 < value < 1 else f"{value:.3g} s"
    return f"{value:.3g}" + {"reqps": " req/s", "cps": " /s"}.get(unit, "")


class Painter:
    def __init__(self, url, seconds, board):
        self.url, self.end = url, time.time()
        self.start, self.step = self.end - seconds, max(1, seconds // 240)
        self.values = {v["name"]: v.get("allValue") or v["current"]["value"]
                       for v in board["templating"]["list"]}
        self.values |= {"__rate_interval": f"{max(10, 4 * self.step)}s", "__range": f"{seconds}s"}

    def rows(self, target):
        """Legend (or labels, of a table) and its values by time."""
        expr = re.sub(r"\$(\w+)", lambda m: self.values[m.group(1)], target["expr"])
        if target["instant"]:
            found = [(r["metric"], [r["value"]]) for r in get(self.url, "query", query=expr)]
        else:
            found = [(r["metric"], r["values"]) for r in
                     get(self.url, "query_range", query=expr, start=self.start, end=self.end,
                         step=self.step)]
        for labels, values in found:
            legend = re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m.group(1), ""),
                            target["legendFormat"])
            yield labels, legend, [t for t, _ in values], [float(v) for _, v in values]

    def draw(self, axes, panel):
        defaults = panel["fieldConfig"]["defaults"]
        unit, empty = defaults["unit"], defaults["noValue"]
        rows = [row for target in panel["targets"] for row in self.rows(target)]
        axes.set_facecolor(TILE)
        axes.set_title(panel["title"], fontsize=8, color=INK, loc="left", pad=3)
        axes.tick_params(labelsize=6, colors=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        kind = panel["type"]
        if kind in ("stat", "table") or not rows:
            axes.set_xticks([])
            axes.set_yticks([])
        if kind == "stat" and rows:
            value = rows[0][3][-1]
            color = [s["color"] for s in defaults["thresholds"]["steps"]
                     if s["value"] is None or value >= s["value"]][-1]
            filled = panel["options"]["colorMode"] == "background"
            axes.set_facecolor(COLORS[color] if filled else TILE)
            axes.text(0.5, 0.45, human(value, unit), fontsize=15, ha="center", va="center",
                      color="white" if filled else COLORS[color], transform=axes.transAxes)
        elif not rows:
            axes.text(0.5, 0.5, empty, fontsize=10, color="#8e8e8e", ha="center", va="center",
                      transform=axes.transAxes)
        elif kind == "table":
            columns = panel["transformations"][1]["options"]["renameByName"]
            lines = ["   ".join(f"{heading}" for heading in columns.values())]
            for labels, _, _, values in rows[:8]:
                cell = {**labels, "Value": {0: "down", 1: "up"}.get(values[-1], values[-1])}
                lines.append("   ".join(str(cell.get(column, "")) for column in columns))
            axes.text(0.02, 0.95, "\n".join(lines), fontsize=7, va="top", family="monospace",
                      color=INK, transform=axes.transAxes)
        elif kind == "bargauge":
            axes.barh([row[1] for row in rows], [row[3][-1] for row in rows], color="#3274d9")
            axes.set_xticks([])
            for i, row in enumerate(rows):
                axes.text(0, i, "  " + human(row[3][-1], unit), va="center", fontsize=7, color=INK)
        elif kind == "heatmap":
            self.heatmap(axes, rows)
        elif kind == "state-timeline":
            for i, (_, _, times, values) in enumerate(rows):
                lit = [t for t, v in zip(times, values) if v == 1]
                axes.barh([i] * len(lit), self.step, left=lit, color=COLORS["green"])
            axes.set_yticks(range(len(rows)), [row[1] for row in rows])
            self.time_axis(axes)
        else:
            self.lines(axes, panel, rows, unit)

    def time_axis(self, axes):
        axes.set_xlim(self.start, self.end)
        ticks = [self.start + (self.end - self.start) * i / 4 for i in range(5)]
        axes.set_xticks(ticks, [time.strftime("%H:%M:%S", time.localtime(t)) for t in ticks])

    def lines(self, axes, panel, rows, unit):
        stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal"
        if stacked:
            times = sorted({t for row in rows for t in row[2]})
            by_time = [dict(zip(row[2], row[3])) for row in rows]
            axes.stackplot(times, [[values.get(t, 0) for t in times] for values in by_time],
                           labels=[row[1] for row in rows], alpha=0.7)
        else:
            for _, legend, times, values in rows:
                axes.plot(times, values, label=f"{legend}  {human(values[-1], unit)}", linewidth=1,
                          marker="." if len(values) < 3 else None)
        axes.set_ylim(bottom=0)
        ticks = axes.get_yticks()[:6]
        axes.set_yticks(ticks, [human(t, unit) for t in ticks])
        axes.grid(color="#33363c", linewidth=0.4)
        self.time_axis(axes)
        axes.legend(fontsize=5.5, facecolor=TILE, edgecolor=TILE, labelcolor=INK, loc="upper left")

    def heatmap(self, axes, rows):
        rows = sorted((float(labels["le"]), dict(zip(times, values)))
                      for labels, _, times, values in rows)
        times = sorted({t for _, values in rows for t in values})
        below, cells = {t: 0 for t in times}, []
        for _, values in rows:
            cells.append([max(0, values.get(t, 0) - below[t]) or math.nan for t in times])
            below = {t: values.get(t, 0) for t in times}
        used = [i for i, row in enumerate(cells) if any(value > 0 for value in row)] or [0]
        low = max(0, used[0] - 1)
        high = max(used[-1] + 1, low + 2)  # One row alone is not drawn.
        axes.pcolormesh(times, range(high - low), cells[low:high], cmap="Oranges", shading="nearest")
        axes.set_yticks(range(high - low), [human(le, "s") for le, _ in rows[low:high]])
        self.time_axis(axes)


def render(url, seconds, out):
    for path in sorted((HERE / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        painter = Painter(url, seconds, board)
        rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
        figure = plt.figure(figsize=(19, rows * 0.36), facecolor=PAPER)
        for panel in board["panels"]:
            place = panel["gridPos"]
            box = [place["x"] / 24 + 0.03, 1 - (place["y"] + place["h"]) / rows + 0.012,
                   place["w"] / 24 - 0.036, place["h"] / rows - 0.026]
            if panel["type"] == "row":
                figure.text(0.005, 1 - (place["y"] + 0.7) / rows, panel["title"], fontsize=10,
                            color="white", weight="bold")
            else:
                painter.draw(figure.add_axes(box), panel)
        figure.savefig(out / f"{path.stem}.png", dpi=80, facecolor=PAPER)
        print(out / f"{path.stem}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus")
    source.add_argument("--session", action="store_true")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=int)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.prometheus:
        return render(arguments.prometheus, 60 * (arguments.minutes or 60), arguments.out)
    import sys
    sys.path.insert(0, str(HERE.parents[1] / "tests" / "deploy"))
    from session import Session
    with Session() as session:
        session.drive(seconds=60 * (arguments.minutes or 2))
        render(session.url, int(time.time() - session.start) + 5, arguments.out)


if __name__ == "__main__":
    main()
