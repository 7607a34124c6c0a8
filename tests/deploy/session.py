"""A small deployment that does everything once, and a Prometheus that watches it.

Runs `quern up` on a tiny checkpoint with free ports, Debian's prometheus with our rules, a
quantization job, and streams of which some are cancelled or refused. What it did is kept, so that
metrics can be compared with it. Nothing here sleeps for a fixed time: everything is polled for.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("QUERN_BIN_DIR", ROOT / "build" / "bin"))
# Everything takes seconds, unless the machine is loaded with other work.
LIMIT_SECONDS = 600


def poll(what, probe, limit=LIMIT_SECONDS):
    """The first true value of `probe`, which is asked again and again."""
    start = time.monotonic()
    deadline = start + limit
    while True:
        value = probe()
        if value:
            print(f"{what}: {time.monotonic() - start:.1f} s", flush=True)
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {limit} s")
        time.sleep(0.05)


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Session:
    SERVICES = {"quern-jobs": "jobs_metrics", "quern-worker": "worker_metrics",
                "quern-inference": "inference_metrics"}

    def __init__(self, with_prometheus=True):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="quern_observe_"))
        self.processes, self.with_prometheus = [], with_prometheus
        self.start = time.time()
        # What callers saw.
        self.lock = threading.Lock()
        self.outcomes, self.prompt_tokens, self.output_tokens = {}, 0, 0
        self.cancelled, self.refused = 0, 0

    def __enter__(self):
        try:
            self._stubs()
            self._up()
            if self.with_prometheus:
                self._prometheus()
            return self
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def __exit__(self, kind, *_):
        for name, process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if kind is not None:
                print(f"--- {name}\n{(self.directory / name).read_text()[-4000:]}", file=sys.stderr)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _spawn(self, name, *command):
        with open(self.directory / name, "w") as log:
            process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        self.processes.append((name, process))
        return process

    def _stubs(self):
        protos = [str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto")]
        stubs = self.directory / "stubs"
        stubs.mkdir()
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}",
                        f"--python_out={stubs}", f"--grpc_python_out={stubs}", *protos], check=True)
        sys.path.insert(0, str(stubs))

    def _up(self):
        subprocess.run([BIN / "write_tiny_checkpoint", self.directory / "models" / "tiny"], check=True)
        state = self.directory / "state"
        up = self._spawn("up.log", BIN / "quern", "--data-directory", state, "up", "--model-root",
                         self.directory / "models", "--threads", 1)
        addresses = state / "quern.json"

        def ready():
            if up.poll() is not None:
                raise RuntimeError("quern up ended")
            return addresses.exists()

        poll("quern up", ready)
        self.addresses = json.loads(addresses.read_text())

    def metrics_address(self, service):
        return self.addresses[self.SERVICES[service]]

    def scrape(self, service):
        return get(f"http://{self.metrics_address(service)}/metrics")

    # ---- Prometheus ---------------------------------------------------------------------------

    def _prometheus(self):
        rules = ROOT / "deploy" / "prometheus"
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                  "rule_files": [str(rules / "rules.yml"), str(rules / "alerts.yml")],
                  "scrape_configs": [
                      {"job_name": job, "static_configs": [{"targets": [self.metrics_address(job)]}]}
                      for job in self.SERVICES]}
        # JSON is YAML.
        (self.directory / "prometheus.yml").write_text(json.dumps(config))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._spawn("prometheus.log", "prometheus",
                    f"--config.file={self.directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self.directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{port}")

        def scraped_twice():
            try:
                found = self.instant("min(count_over_time(up[1h])) >= 2 and count(up == 1) == 3")
            except OSError:
                return False
            return bool(found)

        poll("the first scrapes", scraped_twice)

    def api(self, path, **parameters):
        # A list gives a parameter that is repeated.
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            answer = json.loads(get(f"{self.url}/api/v1/{path}?{query}"))
        except urllib.error.HTTPError as error:
            if error.code == 503:  # It is still starting.
                raise
            raise ValueError(f"{path} {parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success", answer
        return answer["data"]

    def instant(self, expr):
        """Pairs of labels and value, now."""
        return [(sample["metric"], float(sample["value"][1]))
                for sample in self.api("query", query=expr)["result"]]

    def over_time(self, expr):
        """Pairs of labels and (time, value) list, since the start."""
        return [(row["metric"], [(when, float(value)) for when, value in row["values"]])
                for row in self.api("query_range", query=expr, start=self.start, end=time.time(),
                                    step="1s")["result"]]

    def settle(self):
        """Waits for a scrape of every service that begins from now on, and its samples.

        A counter that appears with its first event shows in no rate until its second."""
        if not self.with_prometheus:
            return
        now = time.time()
        poll("the next scrapes", lambda: self.instant(f"count(timestamp(up) > {now}) == 3"))

    # ---- What is done --------------------------------------------------------------------------

    def drive(self, seconds=0):
        """The job and the streams; goes on with streams for `seconds` when the job has ended."""
        import grpc
        from quern.inference.v1 import inference_service_pb2 as inf
        from quern.inference.v1 import inference_service_pb2_grpc as inf_grpc
        from quern.quantization.v1 import quantization_service_pb2 as q
        from quern.quantization.v1 import quantization_service_pb2_grpc as q_grpc
        channel = grpc.insecure_channel(self.addresses["inference"])
        models, text = inf_grpc.ModelServiceStub(channel), inf_grpc.InferenceServiceStub(channel)
        jobs = q_grpc.QuantizationServiceStub(grpc.insecure_channel(self.addresses["jobs"]))

        def load(name, **source):
            models.CreateModel(inf.CreateModelRequest(model_id=name, model=source))
            state = poll(f"loading {name}", lambda: (
                lambda model: model if model.state != inf.Model.LOADING else None)(
                    models.GetModel(inf.GetModelRequest(name=f"models/{name}"))))
            assert state.state == inf.Model.ACTIVE, state
            self.settle()

        def begin(name, tokens=200):
            return text.StreamGenerateText(inf.GenerateTextRequest(
                model=f"models/{name}", prompt="Once upon a time", max_output_tokens=tokens))

        def read(call, cancel=False):
            last = None
            try:
                for last in call:
                    if cancel:
                        call.cancel()
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.CANCELLED:
                    raise
                with self.lock:
                    self.cancelled += 1
                return
            outcome = inf.GenerateTextResponse.FinishReason.Name(last.finish_reason).lower()
            with self.lock:
                self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
                self.prompt_tokens += last.usage.prompt_tokens
                self.output_tokens += last.usage.output_tokens

        def refuse(**request):
            try:
                text.GenerateText(inf.GenerateTextRequest(**request))
            except grpc.RpcError:
                self.refused += 1
                return
            raise AssertionError(f"{request} was not refused")

        load("source", checkpoint="tiny")
        job = jobs.CreateQuantizationJob(q.CreateQuantizationJobRequest(quantization_job={
            "quantize": q.QuantizeTask(checkpoint={"path": "tiny"}, preset="QUICK",
                                       format={"bits": 4, "group_size": 64})}))
        self.settle()
        waiting = jobs.CreateQuantizationJob(q.CreateQuantizationJobRequest(quantization_job={
            "quantize": q.QuantizeTask(checkpoint={"path": "tiny"}, method="RTN",
                                       format={"bits": 8, "group_size": 64})}))
        done, seen, errors = threading.Event(), threading.Event(), []

        def keep_busy(name):
            try:
                while not done.is_set():
                    # Together, so that the engine is busy for longer than this client; once that
                    # was seen, the job may have the processor.
                    for call in [begin(name) for _ in range(1 if seen.is_set() else 24)]:
                        read(call)
                    done.wait(0.2 if seen.is_set() else 0)
            except BaseException as error:  # Reported by the main thread.
                errors.append(error)

        def cancel_some():
            # A stream of the tiny model may be over before the cancellation arrives.
            read(begin("source"), cancel=True)
            return self.metric("quern-inference",
                               'quern_requests_total{model="source",outcome="cancelled"}') >= 2

        busy = threading.Thread(target=keep_busy, args=("source",))
        busy.start()
        try:
            if self.with_prometheus:
                poll("a scrape while requests run",
                     lambda: self.instant("max_over_time(quern_requests_running[1h]) > 0"))
            seen.set()
            poll("two cancelled streams", cancel_some)
            for _ in range(2):
                refuse(model="models/source", prompt="")
                refuse(model="models/source", prompt="Once", max_output_tokens=100000)
                refuse(model="models/nobody", prompt="Once")
                self.settle()

            def ended(name):
                found = jobs.GetQuantizationJob(q.GetQuantizationJobRequest(name=name))
                return found if found.state not in (q.QuantizationJob.QUEUED,
                                                    q.QuantizationJob.RUNNING) else None

            job = poll("the job", lambda: ended(job.name))
            assert job.state == q.QuantizationJob.SUCCEEDED, job
            waiting = poll("the second job", lambda: ended(waiting.name))
            assert waiting.state == q.QuantizationJob.SUCCEEDED, waiting
            load("mine", artifact=job.artifact)
            until = time.monotonic() + seconds
            read(begin("mine"))
            while time.monotonic() < until:
                read(begin("mine"))
        finally:
            done.set()
            busy.join()
        if errors:
            raise errors[0]

    def metric(self, service, series):
        """The value of one series, straight from the service; 0 when it is not there."""
        for line in self.scrape(service).splitlines():
            if line.startswith(series + " "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0
