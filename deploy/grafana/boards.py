#!/usr/bin/env python3
"""Quern's three Grafana boards, from which dashboards/*.json are made.

  deploy/grafana/boards.py            writes the JSON files
  deploy/grafana/boards.py --check    fails when they are not what this file says

A board is a list of rows, a row a list of panels; this file is the only one to edit. Every query
gives a number or nothing: ratios and quantiles drop the NaN that Prometheus makes of no
observations (`>= 0`), and a panel without data says why there is none.
"""
import json
import pathlib
import sys

DATA_SOURCE = {"type": "prometheus", "uid": "prometheus"}
FOLDER = pathlib.Path(__file__).resolve().parent / "dashboards"
NO_TRAFFIC, NO_JOB, NONE = "No traffic", "No job", "None"
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"

# ---- Expressions --------------------------------------------------------------------------------

ANY = 'job=~"quern-.*",instance=~"$instance"'
JOBS = 'job="quern-jobs",instance=~"$instance"'
WORKER = 'job="quern-worker",instance=~"$instance"'
INFERENCE = 'job="quern-inference",instance=~"$instance"'
MODEL = INFERENCE + ',model=~"$model"'
# What the service did wrong; the rest is the caller's: cancelled, invalid, not loaded.
FAILED = 'outcome=~"internal|unavailable|deadline_exceeded"'
GENERATE = 'grpc_service="quern.inference.v1.InferenceService",grpc_method=~"(Stream)?GenerateText"'


def rate(metric, labels, by=""):
    by = f" by ({by})" if by else ""
    return f"sum{by} (rate({metric}{{{labels}}}[$__rate_interval]))"


def grown(metric, labels, by=""):
    """How much counters grew in the shown time."""
    by = f" by ({by})" if by else ""
    return f"sum{by} (increase({metric}{{{labels}}}[$__range]))"


def share(part, whole):
    return f"{part} / {whole} >= 0"


def quantile(q, histogram, labels, by=""):
    by = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', labels, by)}) >= 0"


def mean(histogram, labels, by=""):
    return share(rate(histogram + "_sum", labels, by), rate(histogram + "_count", labels, by))


def within(histogram, labels, variable):
    return share(rate(histogram + "_bucket", f'{labels},le="${variable}"'),
                 rate(histogram + "_count", labels))


# ---- Panels -------------------------------------------------------------------------------------


def steps(*thresholds, first=GREEN):
    """Colours from a value on: steps((1, RED)) is green below 1."""
    return {"mode": "absolute",
            "steps": [{"value": None, "color": first}] +
                     [{"value": value, "color": color} for value, color in thresholds]}


def panel(kind, title, description, queries, unit, width, height, empty, defaults=None,
          options=None, instant=False, query_format="time_series"):
    """`queries`: one expression, or pairs of an expression and its legend."""
    if isinstance(queries, str):
        queries = [(queries, title)]
    targets = [{"refId": chr(ord("A") + i), "datasource": DATA_SOURCE, "expr": expr,
                "legendFormat": legend, "editorMode": "code", "range": not instant,
                "instant": instant, "format": query_format}
               for i, (expr, legend) in enumerate(queries)]
    return {"type": kind, "title": title, "description": description, "datasource": DATA_SOURCE,
            "gridPos": {"h": height, "w": width, "x": 0, "y": 0}, "targets": targets,
            "fieldConfig": {"defaults": {"unit": unit, "noValue": empty, "min": 0,
                                         **(defaults or {})},
                            "overrides": []},
            "options": options or {}}


def stat(title, description, expr, unit="short", thresholds=None, empty=NO_TRAFFIC, width=3,
         decimals=None):
    """One number, coloured by its thresholds: of now, or nothing. The last number of an hour ago
    would look like one of now, so there is no history behind it."""
    defaults = {"thresholds": thresholds or steps(first=BLUE), "color": {"mode": "thresholds"}}
    if decimals is not None:
        defaults["decimals"] = decimals
    return panel("stat", title, description, expr, unit, width, 4, empty, defaults, {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if thresholds else "value", "graphMode": "none",
        "justifyMode": "auto", "textMode": "value", "orientation": "auto"}, instant=True)


def series(title, description, queries, unit="short", empty=NO_TRAFFIC, width=8, height=8,
           stack=False, bars=False, thresholds=None, maximum=None):
    """Lines over time. `thresholds` draws them as dashed lines."""
    custom = {"drawStyle": "bars" if bars else "line", "lineWidth": 1,
              "fillOpacity": 60 if bars else 25 if stack else 8, "showPoints": "never",
              "spanNulls": False, "stacking": {"mode": "normal" if stack else "none", "group": "A"},
              "thresholdsStyle": {"mode": "dashed" if thresholds else "off"}}
    defaults = {"custom": custom, "color": {"mode": "palette-classic"}}
    if thresholds:
        defaults["thresholds"] = thresholds
    if maximum is not None:
        defaults["max"] = maximum
    return panel("timeseries", title, description, queries, unit, width, height, empty, defaults, {
        "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True,
                   "calcs": ["lastNotNull", "max"]},
        "tooltip": {"mode": "multi", "sort": "desc"}})


def heatmap(title, description, histogram, labels, unit="s", empty=NO_TRAFFIC, width=8):
    """How many observations fell into each bucket."""
    expr = f"sum by (le) (increase({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    made = panel("heatmap", title, description, [(expr, "{{le}}")], "short", width, 8, empty, {
        "custom": {"scaleDistribution": {"type": "linear"}}}, {
        "calculate": False, "cellGap": 1,
        "cellValues": {"unit": "short", "decimals": 0},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5,
                  "fill": "dark-orange", "reverse": False, "scale": "exponential"},
        "filterValues": {"le": 1e-9}, "legend": {"show": True}, "exemplars": {"color": "red"},
        "rowsFrame": {"layout": "auto"}, "showValue": "never",
        "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
        "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False}},
        query_format="heatmap")
    return made


def table(title, description, expr, columns, unit="short", empty=NONE, width=12, height=6,
          mappings=None):
    """The labels of the series now. `columns`: label (or Value) -> heading, in order."""
    defaults = {"custom": {"align": "auto", "filterable": False}}
    if mappings:
        defaults["mappings"] = mappings
        defaults["custom"]["cellOptions"] = {"type": "color-text"}
    made = panel("table", title, description, [(expr, "")], unit, width, height, empty, defaults,
                 {"showHeader": True, "cellHeight": "sm"}, instant=True, query_format="table")
    made["transformations"] = [
        {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}},
        {"id": "organize", "options": {"indexByName": {name: i for i, name in enumerate(columns)},
                                       "renameByName": columns}}]
    return made


def bars(title, description, queries, unit="short", empty=NO_JOB, width=8, height=8,
         decimals=None):
    """One bar for each series, of its value now."""
    return panel("bargauge", title, description, queries, unit, width, height, empty,
                 {"thresholds": steps(first=BLUE), "color": {"mode": "thresholds"},
                  **({"decimals": decimals} if decimals is not None else {})},
                 {"displayMode": "basic", "orientation": "horizontal", "showUnfilled": True,
                  "valueMode": "color", "minVizHeight": 16, "minVizWidth": 8, "namePlacement": "auto",
                  "sizing": "auto",
                  "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
                 instant=True)


def timeline(title, description, queries, empty=NO_JOB, width=12, height=8, mappings=None):
    """Which of the series was 1, when."""
    return panel("state-timeline", title, description, queries, "short", width, height, empty,
                 {"custom": {"fillOpacity": 80, "lineWidth": 0}, "mappings": mappings or [],
                  "thresholds": steps((1, GREEN), first="transparent"),
                  "color": {"mode": "thresholds"}},
                 {"mergeValues": True, "showValue": "never", "alignValue": "left", "rowHeight": 0.8,
                  "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False,
                             "calcs": []},
                  "tooltip": {"mode": "single", "sort": "none"}})


# ---- Boards -------------------------------------------------------------------------------------


def variable(name, label, metric_query, description):
    return {"type": "query", "name": name, "label": label, "description": description,
            "datasource": DATA_SOURCE,
            "query": {"query": metric_query, "refId": name}, "refresh": 2, "sort": 1,
            "multi": True, "includeAll": True, "allValue": ".*", "hide": 0,
            "current": {"text": "All", "value": "$__all", "selected": True}, "options": []}


def instance(job):
    return variable("instance", "Instance", f'label_values(up{{job=~"{job}"}}, instance)',
                    "Processes, by the address of their metrics")


def slo(name, label, values, chosen, description):
    """A bound that must be a bucket of the histogram, as the shares are read from the bucket."""
    return {"type": "custom", "name": name, "label": label, "description": description,
            "query": ", ".join(f"{value} s : {value}" for value in values), "multi": False,
            "includeAll": False, "hide": 0,
            "current": {"text": f"{chosen} s", "value": chosen, "selected": True},
            "options": [{"text": f"{value} s", "value": value, "selected": value == chosen}
                        for value in values]}


def board(uid, title, description, variables, rows):
    panels, y, number = [], 0, 1
    for name, members in rows:
        panels.append({"type": "row", "id": number, "title": name, "collapsed": False,
                       "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}, "panels": []})
        number, x, y, height = number + 1, 0, y + 1, 0
        for member in members:
            place = member["gridPos"]
            if x + place["w"] > 24:
                x, y, height = 0, y + height, 0
            panels.append({"id": number, **member, "gridPos": {**place, "x": x, "y": y}})
            number, x, height = number + 1, x + place["w"], max(height, place["h"])
        y += height
    links = [{"type": "dashboards", "title": "Quern", "tags": ["quern"], "asDropdown": False,
              "includeVars": False, "keepTime": True, "targetBlank": False, "icon": "external link",
              "tooltip": "", "url": ""}]
    return {"uid": uid, "title": title, "description": description, "tags": ["quern"],
            "schemaVersion": 41, "editable": True, "graphTooltip": 1, "refresh": "30s",
            "timezone": "browser", "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": variables}, "annotations": {"list": []}, "links": links,
            "panels": panels}


UP_OR_DOWN = [{"type": "value", "options": {"0": {"text": "down", "color": RED, "index": 0},
                                            "1": {"text": "up", "color": GREEN, "index": 1}}}]


def workers_up(width=3):
    return stat("Workers up", "Workers that asked quern-jobs for work in the last two minutes. "
                "Without one, jobs wait.", f'sum(quern_worker_up{{{JOBS}}}) or vector(0)',
                thresholds=steps((1, GREEN), first=RED), empty="None", width=width)


def overview():
    return board("quern-overview", "Quern / Overview", "Is it well? If not: which part?",
                 [instance("quern-.*")], [
        ("Is it well?", [
            stat("Services down", "Quern processes that Prometheus knows and cannot reach.",
                 f"count(up{{{ANY}}} == 0) or vector(0)", thresholds=steps((1, RED)), empty="?"),
            stat("Alerts firing", "Alerts of deploy/prometheus/alerts.yml that fire now; the "
                 "runbook for each is in docs/operations.md.",
                 'count(ALERTS{alertname=~"Quern.+",alertstate="firing"}) or vector(0)',
                 thresholds=steps((1, RED)), empty="?"),
            stat("Failed requests", "Share of requests that ended with an error of the service: "
                 "internal, unavailable or past their deadline. What callers cancelled or asked "
                 "wrongly is not counted.",
                 share(rate("quern_requests_total", f"{INFERENCE},{FAILED}"),
                       rate("quern_requests_total", INFERENCE)),
                 "percentunit", steps((0.01, YELLOW), (0.05, RED)), decimals=1),
            stat("First token, p95", "19 of 20 requests see their first token within this time.",
                 quantile(0.95, "quern_time_to_first_token_seconds", INFERENCE), "s",
                 steps((1, YELLOW), (2.5, RED)), decimals=2),
            stat("Tokens out", "Tokens generated each second, all models together.",
                 rate("quern_generated_tokens_total", INFERENCE), "short", decimals=1),
            stat("Jobs waiting", "Quantization jobs that no worker has taken yet.",
                 f'sum(quern_jobs{{{JOBS},state="QUEUED"}})',
                 thresholds=steps((1, BLUE), (10, YELLOW), first=GREEN), empty="?"),
            workers_up(),
            stat("Least disk free", "Free bytes on the fullest of the disks with artifacts, work "
                 "and caches. Below 1 GiB quern-jobs refuses uploads.",
                 f"min(quern_disk_free_bytes{{{ANY}}})", "bytes",
                 steps((2 << 30, YELLOW), (10 << 30, GREEN), first=RED), empty="?"),
            table("What fires", "Alerts that fire or are about to. Look their name up in "
                  "docs/operations.md.", 'ALERTS{alertname=~"Quern.+"}',
                  {"alertname": "Alert", "severity": "Severity", "alertstate": "State",
                   "job": "Service", "instance": "Instance"}, empty="No alert"),
            table("Services", "Every Quern process and whether Prometheus reaches it.",
                  f"up{{{ANY}}}", {"job": "Service", "instance": "Instance", "Value": "State"},
                  empty="Prometheus scrapes no Quern service", mappings=UP_OR_DOWN)]),
        ("Serving", [
            series("Requests by end", "Requests each second by how they ended.",
                   [(rate("quern_requests_total", INFERENCE, "outcome") + " > 0", "{{outcome}}")],
                   "reqps", stack=True),
            series("Requests turned away", "Requests each second that were refused before they "
                   "generated anything, by reason.",
                   [(rate("quern_requests_rejected_total", INFERENCE, "reason") + " > 0",
                     "{{reason}}")], "reqps", stack=True, empty="None turned away"),
            series("Time to first token", "From a request's arrival to its first token.",
                   [(quantile(q, "quern_time_to_first_token_seconds", INFERENCE), f"p{q * 100:g}")
                    for q in (0.5, 0.95, 0.99)], "s", thresholds=steps((2.5, RED), first="transparent")),
            series("Tokens per second", "Prompt tokens computed and tokens generated.",
                   [(rate("quern_prompt_tokens_total", INFERENCE), "prompt"),
                    (rate("quern_generated_tokens_total", INFERENCE), "generated")]),
            series("Running and waiting", "Requests in the engine's batch and in its queue. A queue "
                   "that does not empty means more load than this machine serves.",
                   [(f"sum(quern_requests_running{{{INFERENCE}}})", "running"),
                    (f"sum(quern_requests_waiting{{{INFERENCE}}})", "waiting")]),
            series("Failed calls", "Calls of any service each second that did not end with OK, by "
                   "service, method and code.",
                   [(rate("grpc_server_handled_total", ANY + ',grpc_code!="OK"',
                          "grpc_method, grpc_code") + " > 0", "{{grpc_method}} {{grpc_code}}")],
                   "reqps", stack=True, empty="No failed call")]),
        ("Jobs", [
            series("Jobs by state", "Jobs that wait, run or are being cancelled.",
                   [(f'sum by (state) (quern_jobs{{{JOBS},state=~"QUEUED|RUNNING|CANCELLING"}})',
                     "{{state}}")], stack=True, empty="?"),
            series("Progress of the running stage", "How far each worker is with the stage at "
                   "hand; 0 while it has no job.",
                   [(f"quern_job_progress_ratio{{{WORKER}}}", "{{instance}}")], "percentunit",
                   maximum=1, empty="No worker"),
            bars("Jobs that ended", "In the shown time, by state and reason of failure.",
                 [(grown("quern_jobs_finished_total", JOBS, "state, error_reason") + " > 0",
                   "{{state}} {{error_reason}}")], empty="None ended", decimals=0)]),
        ("Machines", [
            series("Memory", "Memory of each process in RAM; the quantizer's is not the worker's.",
                   [(f"process_resident_memory_bytes{{{ANY}}}", "{{job}} {{instance}}")], "bytes",
                   width=6, empty="?"),
            series("Processor", "CPU cores that each process keeps busy; the quantizer's are not "
                   "counted with the worker's.",
                   [(f"rate(process_cpu_seconds_total{{{ANY}}}[$__rate_interval])",
                     "{{job}} {{instance}}")], "short", width=6, empty="?"),
            series("Disk free", "What each service may still write where its directory lies.",
                   [(f"quern_disk_free_bytes{{{ANY}}}", "{{directory}} {{instance}}")], "bytes",
                   width=6, empty="?"),
            series("Up since", "How long each process has been running: a saw tooth is a crash loop.",
                   [(f"time() - process_start_time_seconds{{{ANY}}}", "{{job}} {{instance}}")], "s",
                   width=6, empty="?"),
            table("Versions", "Which version each service runs; all should be equal.",
                  f"quern_build_info{{{ANY}}}",
                  {"job": "Service", "instance": "Instance", "version": "Version"}, width=24,
                  empty="?")])])


def jobs():
    return board("quern-jobs", "Quern / Jobs", "Do quantization jobs get on? If not: why?",
                 [instance("quern-(jobs|worker)")], [
        ("Do jobs get on?", [
            stat("Jobs waiting", "Jobs that no worker has taken yet.",
                 f'sum(quern_jobs{{{JOBS},state="QUEUED"}})',
                 thresholds=steps((1, BLUE), (10, YELLOW), first=GREEN), empty="?"),
            stat("Longest wait", "Age of the oldest job that waits.",
                 f"max(quern_job_oldest_queued_seconds{{{JOBS}}})", "s",
                 steps((900, YELLOW), (3600, RED)), empty="?"),
            stat("Jobs running", "Jobs that a worker has leased.",
                 f'sum(quern_jobs{{{JOBS},state="RUNNING"}})', empty="?"),
            workers_up(),
            stat("Since last progress", "Time since the slowest running job last reported anything. "
                 "A large block may take minutes.",
                 "clamp_min(max(time() - (quern_job_last_progress_timestamp_seconds"
                 f"{{{WORKER}}} > 0)), 0)", "s",
                 steps((600, YELLOW), (1800, RED)), empty=NO_JOB),
            stat("Jobs failed", "In the shown time, whatever the reason.",
                 grown("quern_jobs_finished_total", JOBS + ',state="FAILED"'),
                 thresholds=steps((0.5, YELLOW)), empty="?", decimals=0),
            stat("Leases lost", "Jobs given on in the shown time because their worker fell silent.",
                 grown("quern_leases_expired_total", JOBS), thresholds=steps((0.5, YELLOW), (3, RED)),
                 empty="?", decimals=0),
            stat("Quantizer restarts", "Quantizers that crashed in the shown time and were started "
                 "again from their last finished block.",
                 grown("quern_quantizer_restarts_total", WORKER),
                 thresholds=steps((0.5, YELLOW), (3, RED)), empty="No worker", decimals=0)]),
        ("Running jobs", [
            timeline("Stage", "Which stage each worker's job is in.",
                     [(f"max by (stage) (quern_job_stage_running{{{WORKER}}})", "{{stage}}")],
                     empty="No worker"),
            series("Progress of the stage", "Share of the stage at hand that is done: transformer "
                   "blocks in BLOCK_AP, steps in E2E_QP.",
                   [(f"quern_job_progress_ratio{{{WORKER}}}", "{{instance}}")], "percentunit",
                   width=12, maximum=1, empty="No worker"),
            series("Loss of the last block", "Mean squared error of the transformer block trained "
                   "last. It usually grows from block to block; a jump by orders of magnitude is a "
                   "run that diverges.",
                   [(f"quern_block_loss{{{WORKER}}}", "{{instance}}")], "sci", empty="No worker"),
            series("Time per block", "Seconds to train one transformer block, by the blocks that "
                   "ended.", [(mean("quern_block_seconds", WORKER, "instance"), "{{instance}}")], "s",
                   empty="No block trained"),
            bars("Time per stage", "Mean duration of each stage since the workers started.",
                 [(f"sum by (stage) (quern_job_stage_seconds_sum{{{WORKER}}}) / "
                   f"sum by (stage) (quern_job_stage_seconds_count{{{WORKER}}}) >= 0", "{{stage}}")],
                 "s", empty="No job ended")]),
        ("Queue", [
            series("Jobs by state", "Jobs that wait, run or are being cancelled.",
                   [(f'sum by (state) (quern_jobs{{{JOBS},state=~"QUEUED|RUNNING|CANCELLING"}})',
                     "{{state}}")], stack=True, empty="?"),
            heatmap("Wait before a job starts", "From the creation of jobs to their first lease.",
                    "quern_job_queue_seconds", JOBS, empty="No job started"),
            bars("Jobs that ended", "In the shown time, by state and reason of failure.",
                 [(grown("quern_jobs_finished_total", JOBS, "state, error_reason") + " > 0",
                   "{{state}} {{error_reason}}")], empty="None ended", decimals=0)]),
        ("Leases and workers", [
            series("Lease churn", "What happens to leases when workers vanish: expired at "
                   "quern-jobs, jobs queued again, lost as the workers saw it, and writes refused "
                   "because their lease had gone.",
                   [(rate("quern_leases_expired_total", JOBS), "expired"),
                    (rate("quern_job_retries_total", JOBS), "queued again"),
                    (rate("quern_leases_lost_total", WORKER), "lost by a worker"),
                    (rate("quern_fenced_writes_total", JOBS), "write refused")], "cps", empty="?"),
            series("Workers", "1 for each worker that quern-jobs heard of in the last two minutes.",
                   [(f"quern_worker_up{{{JOBS}}}", "{{worker}} ({{device}})")], empty="No worker"),
            series("Blocks saved", "Finished blocks that a crash does not lose, and quantizers that "
                   "crashed and were started again.",
                   [(f"sum(increase({metric}{{{WORKER}}}[$__rate_interval]))", legend)
                    for metric, legend in (("quern_checkpoints_written_total", "blocks saved"),
                                           ("quern_quantizer_restarts_total", "restarts"))],
                   bars=True, empty="No worker")]),
        ("Store", [
            series("Stored artifacts", "Bytes in the blob store.",
                   [(f"sum(quern_store_bytes{{{JOBS}}})", "blobs")], "bytes", width=6, empty="?"),
            series("Disk free", "Where artifacts and unfinished work lie.",
                   [(f'quern_disk_free_bytes{{{ANY},directory=~"data|work"}}',
                     "{{directory}} {{instance}}")], "bytes", width=6, empty="?"),
            series("Store operations, p95", "How long the job database and the blob store take.",
                   [(quantile(0.95, "quern_store_op_seconds", JOBS, "op"), "{{op}}")], "s", width=6,
                   empty="No operation"),
            series("Damaged uploads", "Since the start of quern-jobs: uploads refused because their "
                   "bytes were not what the worker announced. Any points to a failing machine.",
                   [(f"sum(quern_store_verify_failures_total{{{JOBS}}})", "damaged")], width=6,
                   empty="?")])])


def inference():
    ttft, itl = "quern_time_to_first_token_seconds", "quern_inter_token_latency_seconds"
    return board("quern-inference", "Quern / Inference", "Are callers served well? If not: why?", [
        instance("quern-inference"),
        variable("model", "Model", f'label_values(quern_requests_total{{{INFERENCE}}}, model)',
                 "Models in memory and the ones unloaded last"),
        slo("ttft_slo", "First token within", ["0.1", "0.25", "0.5", "1", "2.5", "5", "10"], "2.5",
            "Your objective for the time to first token"),
        slo("itl_slo", "Next token within", ["0.025", "0.05", "0.1", "0.2", "0.5", "1"], "0.2",
            "Your objective for the time between tokens")], [
        ("Are callers served well?", [
            stat("Requests", "Requests that ended each second.",
                 rate("quern_requests_total", MODEL), "reqps", decimals=2),
            stat("Failed", "Share of requests that ended with an error of the service: internal, "
                 "unavailable or past their deadline.",
                 share(rate("quern_requests_total", f"{MODEL},{FAILED}"),
                       rate("quern_requests_total", MODEL)),
                 "percentunit", steps((0.01, YELLOW), (0.05, RED)), decimals=1),
            stat("Turned away", "Share of calls that the server had no room for: queue full, "
                 "deadline passed in the queue, not ready or shutting down.",
                 share(rate("quern_requests_rejected_total",
                            INFERENCE + ',reason=~"queue_full|queue_tokens|queue_wait|deadline|draining|not_ready"'),
                       rate("grpc_server_handled_total", f"{INFERENCE},{GENERATE}")),
                 "percentunit", steps((0.01, YELLOW), (0.05, RED)), decimals=1),
            stat("First token, p95", "19 of 20 requests see their first token within this time.",
                 quantile(0.95, ttft, MODEL), "s", steps((1, YELLOW), (2.5, RED)), decimals=2),
            stat("First token in time", "Share of requests whose first token came within the "
                 "objective chosen above.", within(ttft, MODEL, "ttft_slo"), "percentunit",
                 steps((0.9, YELLOW), (0.95, GREEN), first=RED), decimals=1),
            stat("Next token, p95", "19 of 20 tokens follow the one before within this time.",
                 quantile(0.95, itl, MODEL), "s", steps((0.2, YELLOW), (1, RED)), decimals=3),
            stat("Next token in time", "Share of tokens that came within the objective chosen above.",
                 within(itl, MODEL, "itl_slo"), "percentunit",
                 steps((0.9, YELLOW), (0.95, GREEN), first=RED), decimals=1),
            stat("Tokens out", "Tokens generated each second.",
                 rate("quern_generated_tokens_total", MODEL), decimals=1)]),
        ("Latency", [
            heatmap("Spread of first tokens", "From a request's arrival, tokenization included, to its "
                    "first token. Darker: more requests.", ttft, MODEL),
            heatmap("Spread between tokens", "Between consecutive tokens of a request.", itl, MODEL),
            heatmap("Spread of whole requests", "From arrival to end, however the request ended.",
                    "quern_request_seconds", MODEL),
            series("Time to first token", "Half, 19 of 20 and 99 of 100 requests see their first "
                   "token within this time.",
                   [(quantile(q, ttft, MODEL), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)], "s"),
            series("Time between tokens", "The same for the time from token to token.",
                   [(quantile(q, itl, MODEL), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)], "s"),
            series("Where the time goes", "Mean time of a request in the queue, until its first "
                   "token (prefill) and from there to its end (decode).",
                   [(mean("quern_request_queue_seconds", MODEL), "queue"),
                    (mean("quern_request_prefill_seconds", MODEL), "prefill"),
                    (mean("quern_request_decode_seconds", MODEL), "decode")], "s", stack=True)]),
        ("Load", [
            series("Requests by end", "Requests each second by how they ended.",
                   [(rate("quern_requests_total", MODEL, "outcome") + " > 0", "{{outcome}}")],
                   "reqps", stack=True, width=6),
            series("Running and waiting", "Requests in the engine's batch and in its queue.",
                   [(f"sum(quern_requests_running{{{INFERENCE}}})", "running"),
                    (f"sum(quern_requests_waiting{{{INFERENCE}}})", "waiting")], width=6, empty="?"),
            series("Tokens unfinished", "Of all requests in the engine, prompts and answers asked "
                   "for; at --max-queued-tokens more are turned away.",
                   [(f"sum(quern_queued_tokens{{{INFERENCE}}})", "tokens")], width=6, empty="?"),
            series("Tokens in and out", "Prompt tokens taken in and tokens generated each second. "
                   "Cached: prompt tokens not computed again, as another prompt began alike.",
                   [(rate("quern_prompt_tokens_total", MODEL), "in (prompt)"),
                    (rate("quern_generated_tokens_total", MODEL), "out (generated)"),
                    (rate("quern_prefix_cache_tokens_total", INFERENCE),
                     "of these cached (all models)")], width=6)]),
        ("Engine", [
            series("KV pages", "Memory for keys and values, in pages, of all models. Cached pages "
                   "are free, but prompts that begin alike find them. When none is free or cached, "
                   "requests wait or lose theirs.",
                   [(f"sum by (state) (quern_kv_pages{{{INFERENCE}}})", "{{state}}")], stack=True,
                   width=5, empty="?"),
            series("Time of a step", "One forward pass of the batch: a token for each running "
                   "request, or a piece of a prompt.",
                   [(quantile(q, "quern_step_seconds", INFERENCE), f"p{q * 100:g}")
                    for q in (0.5, 0.95, 0.99)], "s", width=5),
            series("Size of a step", "Mean tokens and sequences of one step: more of them use the "
                   "machine better.",
                   [(mean("quern_step_tokens", INFERENCE), "tokens"),
                    (mean("quern_batch_sequences", INFERENCE), "sequences")], width=5),
            series("Speculation", "Tokens guessed ahead and computed, and those that were right, each "
                   "second. Guesses that are seldom right cost time.",
                   [(rate("quern_speculation_guessed_tokens_total", INFERENCE), "guessed"),
                    (rate("quern_speculation_accepted_tokens_total", INFERENCE), "right")],
                   width=5, empty="?"),
            series("Since the last step", "How long the engine has not finished a step while "
                   "requests run. More than a minute is a stall.",
                   [("clamp_min(time() - quern_engine_last_step_timestamp_seconds"
                     f"{{{INFERENCE}}}, 0) and quern_requests_running{{{INFERENCE}}} > 0",
                     "{{instance}}")], "s", width=4,
                   empty="Idle")]),
        ("Trouble", [
            series("Requests turned away", "Refused before they generated anything, by reason: those "
                   "each second.",
                   [(rate("quern_requests_rejected_total", INFERENCE, "reason") + " > 0",
                     "{{reason}}")], "reqps", stack=True, empty="None turned away", width=6),
            series("Wasted work", "Tokens each second that were computed for requests that did not "
                   "end well, by why.",
                   [(rate("quern_discarded_tokens_total", MODEL, "reason") + " > 0", "{{reason}}")],
                   stack=True, empty="None wasted", width=6),
            series("Preemptions", "Requests that lost their KV pages to older ones and were computed "
                   "again, each second: the KV memory is too small for the load.",
                   [(rate("quern_preemptions_total", INFERENCE), "preemptions")], "cps", width=6,
                   empty="?"),
            series("Slow readers", "How long text waited because the client had not taken what came "
                   "before. Much of it is a slow client or network, not a slow engine.",
                   [(quantile(q, "quern_stream_blocked_seconds", INFERENCE), f"p{q * 100:g}")
                    for q in (0.5, 0.95)], "s", width=6, empty="No text waited")]),
        ("Models", [
            table("Models in memory", "What each model is and which kernels serve it; 0 bits is a "
                  "checkpoint as it came.", f"quern_model_info{{{MODEL}}}",
                  {"model": "Model", "artifact": "Artifact", "bits": "Bits", "group_size": "Group",
                   "kernel": "Kernels", "kv_cache_type": "KV cache", "instance": "Instance"}, empty="No model loaded"),
            bars("Memory of models", "Weights as the kernels read them, those that another model held "
                 "already (shared), and KV pages.",
                 [(f"sum by (model, kind) (quern_model_bytes{{{MODEL}}})", "{{model}} {{kind}}")],
                 "bytes", width=6, height=6, empty="No model loaded"),
            bars("Time to load", "How long each model took from request to ready.",
                 [(f"max by (model) (quern_model_load_seconds{{{MODEL}}})", "{{model}}")], "s",
                 width=3, height=6, empty="No model loaded"),
            {**stat("Loads that failed", "Models that could not be loaded, in the shown time.",
                    grown("quern_model_load_failures_total", INFERENCE),
                    thresholds=steps((0.5, YELLOW)), empty="?", decimals=0),
             "gridPos": {"h": 6, "w": 3, "x": 0, "y": 0}},
            series("Memory for models", "What is set aside for models, and what all of them may take.",
                   [(f"sum by (instance) (quern_model_memory_reserved_bytes{{{INFERENCE}}})",
                     "{{instance}} reserved"),
                    (f"sum by (instance) (quern_model_memory_budget_bytes{{{INFERENCE}}})",
                     "{{instance}} budget")], "bytes", width=6, empty="?"),
            series("Models loaded and evicted", "Each second: loads by what asked for them, and models "
                   "taken out of memory until the next request, by why. Much of both is a budget that "
                   "is too small for the models in use.",
                   [(rate("quern_model_loads_total", INFERENCE, "cause") + " > 0",
                     "loaded: {{cause}}"),
                    (rate("quern_model_evictions_total", INFERENCE, "reason"),
                     "evicted: {{reason}}")], "cps", width=6, empty="None")])])


BOARDS = {"overview.json": overview, "jobs.json": jobs, "inference.json": inference}


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    stale = []
    for name, make in BOARDS.items():
        path, text = FOLDER / name, json.dumps(make(), indent=1) + "\n"
        if not sys.argv[1:]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not what boards.py makes; run deploy/grafana/boards.py")


if __name__ == "__main__":
    main()
