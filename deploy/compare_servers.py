#!/usr/bin/env python3
"""Measures two running servers side by side with `quern bench serve`, over OpenAI's API.

    deploy/compare_servers.py quern=http://127.0.0.1:7422 llama.cpp=http://127.0.0.1:8080 [options]
    deploy/compare_servers.py --artifact DIRECTORY --llama-server PROGRAM --gguf MODEL.gguf [options]

The first form starts nothing: NAME=URL, or NAME=URL#MODEL where a server has several; any server with
OpenAI's API. The second starts both with as many threads, on free ports: quern-inference of build/bin
with an artifact, and llama-server with a .gguf file. The servers take turns: each figure is a median
over rounds, so that the machine's moods meet both alike; overload and open streams come last, once,
since they leave a server warm. Memory is that of the process behind the port, where this user may look.
Prompts are random token ids; answers are greedy and go on through the end of text.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

CLOSED_STREAMS = 16
OPEN_STREAMS = 256
LOAD_SHARE = 0.8
OVERLOAD = 10
PREFIX_TOKENS = 1000
MEASURES = ('load', 'prefix', 'open', 'overload')


class Server:
    def __init__(self, text):
        self.name, _, rest = text.partition('=')
        self.url, _, self.model = rest.partition('#')
        self.address = urllib.parse.urlsplit(self.url)
        if not self.name or self.address.scheme != 'http' or not self.address.port:
            raise argparse.ArgumentTypeError(f'{text}: wanted NAME=http://HOST:PORT')
        self.figures = {}  # name: one value a round

    def connect(self):
        if not self.model:
            try:
                with urllib.request.urlopen(f'{self.url.rstrip("/")}/v1/models', timeout=60) as answer:
                    models = [model['id'] for model in json.load(answer)['data']]
            except OSError as error:
                sys.exit(f'{self.name}: {self.url}: {error}')
            if len(models) != 1:
                sys.exit(f'{self.name}: serves {models}; name one as {self.name}={self.url}#MODEL')
            self.model = models[0]
        self.pid = pid_behind(self.address.port)
        if self.pid is None:
            print(f'{self.name}: no process of this user behind port {self.address.port}; memory is not '
                  'measured', file=sys.stderr)

    def add(self, figure, value):
        self.figures.setdefault(figure, []).append(value)

    def median(self, figure):
        values = [value for value in self.figures.get(figure, []) if value is not None]
        return statistics.median(values) if values else None

    def rss_mb(self):
        if self.pid is None:
            return None
        for line in pathlib.Path(f'/proc/{self.pid}/status').read_text().splitlines():
            if line.startswith('VmRSS:'):
                return int(line.split()[1]) * 1024 / 1e6
        return None


def pid_behind(port):
    """The process that listens on a TCP port of this machine, or None."""
    inodes = set()
    for table in ('/proc/net/tcp', '/proc/net/tcp6'):
        for line in pathlib.Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rpartition(':')[2], 16) == port and fields[3] == '0A':
                inodes.add(f'socket:[{fields[9]}]')
    for process in pathlib.Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            for descriptor in (process / 'fd').iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        return int(process.name)
    return None


def bench(server, options, *arguments):
    """One row of `quern bench serve`."""
    done = subprocess.run(
        [options.quern, '--json', 'bench', 'serve', server.model, '--api', 'openai', '--url', server.url,
         '--prompt-tokens', str(options.prompt_tokens), '--output-tokens', str(options.output_tokens),
         '--first-token-limit-ms', str(options.first_token_limit_ms),
         '--next-token-limit-ms', str(options.next_token_limit_ms),
         '--seed', str(random.randrange(1 << 30)), *map(str, arguments)],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f'{server.name}: quern bench serve {" ".join(map(str, arguments))}: {done.stderr}')
    row = json.loads(done.stdout)['rows'][0]
    if row['failures']:
        print(f'{server.name}: {" ".join(map(str, arguments))}: {row["failures"]}', file=sys.stderr)
    return row


def first_token_seconds(server, prompt):
    """Of one request alone."""
    connection = http.client.HTTPConnection(server.address.hostname, server.address.port, timeout=600)
    body = {'model': server.model, 'prompt': prompt, 'max_tokens': 2, 'temperature': 0, 'stream': True,
            'ignore_eos': True}
    start = time.monotonic()
    connection.request('POST', f'{server.address.path.rstrip("/")}/v1/completions', json.dumps(body),
                       {'Content-Type': 'application/json'})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f'{server.name}: HTTP {answer.status}: {answer.read(500)}')
    for line in answer:
        if line.startswith(b'data: {') and any(
                choice.get('text') for choice in json.loads(line[6:]).get('choices', [])):
            seconds = time.monotonic() - start
            answer.read()
            connection.close()
            return seconds
    sys.exit(f'{server.name}: an answer without text')


def measure_prefix_reuse(server):
    """The time to the first token of a prompt that begins as the one before it, and of that one."""
    shared = [random.randrange(256) for _ in range(PREFIX_TOKENS)]
    first, second = (first_token_seconds(server, shared + [random.randrange(256) for _ in range(16)])
                     for _ in range(2))
    server.add('prefix first ms', first * 1e3)
    server.add('prefix second ms', second * 1e3)
    server.add('prefix second/first', second / first)


def measure_streams(servers, options):
    for streams in (CLOSED_STREAMS, 1):
        for server in servers:
            row = bench(server, options, '--concurrency', streams, '--seconds', options.seconds)
            server.add(f'{streams} streams tokens/s', row['outputTokensPerSecond'])
    for server in servers:
        server.capacity = server.median(f'{CLOSED_STREAMS} streams tokens/s') / options.output_tokens


def measure_load(servers, options):
    least = min(server.capacity for server in servers)
    for server in servers:
        for title, capacity in (('own', server.capacity), ('least', least)):
            row = bench(server, options, '--rate', max(0.01, LOAD_SHARE * capacity),
                        '--seconds', options.seconds)
            server.add(f'{LOAD_SHARE} of {title} capacity, first token p50 ms',
                       row['firstTokenSeconds']['p50'] * 1e3)
            server.add(f'{LOAD_SHARE} of {title} capacity, first token p99 ms',
                       row['firstTokenSeconds']['p99'] * 1e3)
            if title == 'own':
                server.add('good/s at it', row['goodPerSecond'])


def measure_overload(server, options):
    before = server.rss_mb()
    row = bench(server, options, '--rate', max(0.01, OVERLOAD * server.capacity), '--seconds',
                options.seconds, '--drain-seconds', options.seconds)
    after = server.rss_mb()
    name = f'overload {OVERLOAD}x'
    peak = max(server.figures.get('good/s at it', []) + [row['goodPerSecond']])
    server.add(f'{name}, good/s', row['goodPerSecond'])
    server.add(f'{name}, goodput over peak', row['goodPerSecond'] / peak if peak > 0 else None)
    server.add(f'{name}, first token p99 ms of admitted', row['firstTokenSeconds']['p99'] * 1e3)
    server.add(f'{name}, refused share', row['refused'] / max(1, row['sent']))
    server.add(f'{name}, refusal p99 ms',
               row['refusedSeconds']['p99'] * 1e3 if row['refused'] else None)
    server.add(f'{name}, given up share', row['givenUp'] / max(1, row['sent']))
    server.add(f'{name}, RSS before MB', before)
    server.add(f'{name}, RSS after MB', after)


def measure_open_streams(server, options):
    idle = server.rss_mb()
    highest = [idle]
    done = threading.Event()

    def sample():
        while server.pid is not None and not done.wait(0.05):
            highest.append(server.rss_mb())

    sampler = threading.Thread(target=sample)
    sampler.start()
    row = bench(server, options, '--concurrency', OPEN_STREAMS, '--seconds', options.seconds,
                '--drain-seconds', options.seconds)
    done.set()
    sampler.join()
    name = f'{OPEN_STREAMS} streams'
    server.add(f'{name}, RSS idle MB', idle)
    server.add(f'{name}, RSS over idle MB', None if idle is None else max(highest) - idle)
    server.add(f'{name}, refused', row['refused'])
    server.add(f'{name}, tokens/s', row['outputTokensPerSecond'])


def report(servers):
    first = servers[0]
    width = max(map(len, first.figures))
    print(f'{"":{width}}' + ''.join(f'  {server.name:>12}' for server in servers) +
          ''.join(f'  {first.name + "/" + other.name:>20}' for other in servers[1:]))
    for figure in first.figures:
        values = [server.median(figure) for server in servers]
        line = f'{figure:{width}}' + ''.join(
            f'  {"-" if value is None else format(value, ".2f"):>12}' for value in values)
        for value in values[1:]:
            ratio = '-' if value in (None, 0) or values[0] is None else f'{values[0] / value:.2f}'
            line += f'  {ratio:>20}'
        print(line)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def wait_until_serving(url, process, name):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f'{name}: ended while starting with {process.returncode}')
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    sys.exit(f'{name}: not ready within 300 s')


def start_quern(options, directory, stack):
    ready = directory / 'ready.json'
    # Where it looks for artifacts first.
    digest = hashlib.sha256((options.artifact / 'manifest.json').read_bytes()).hexdigest()
    shutil.copytree(options.artifact, directory / 'cache' / 'artifacts' / digest)
    quern = pathlib.Path(options.quern)
    process = subprocess.Popen(
        [quern.parent / 'quern-inference', '--jobs=', '--listen=127.0.0.1:0',
         '--http_listen=127.0.0.1:0', '--metrics_listen=127.0.0.1:0', f'--ready_file={ready}',
         f'--cache_directory={directory}/cache', f'--threads={options.threads}',
         *options.quern_arguments.split()], stderr=open(directory / 'quern.log', 'w'))
    stack.callback(stop, process)
    while not ready.exists():
        if process.poll() is not None:
            sys.exit(f'quern-inference: ended while starting; see {directory}/quern.log')
        time.sleep(0.05)
    addresses = json.loads(ready.read_text())
    subprocess.run([quern, '--inference', addresses['grpc_address'], 'models', 'load', 'bench', digest],
                   check=True, stdout=sys.stderr)
    return Server(f'quern=http://{addresses["http_address"]}')


def start_llama(options, directory, stack):
    port = free_port()
    process = subprocess.Popen(
        [options.llama_server, '-m', options.gguf, '--host', '127.0.0.1', '--port', str(port), '-t',
         str(options.threads), '-np', str(CLOSED_STREAMS), '-c', str(CLOSED_STREAMS * 2048),
         *options.llama_arguments.split()],
        stdout=subprocess.DEVNULL, stderr=open(directory / 'llama.log', 'w'))
    stack.callback(stop, process)
    wait_until_serving(f'http://127.0.0.1:{port}/health', process, 'llama-server')
    return Server(f'llama.cpp=http://127.0.0.1:{port}')


def stop(process):
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('servers', nargs='*', metavar='NAME=URL[#MODEL]', type=Server)
    parser.add_argument('--artifact', type=pathlib.Path, help='directory of `quern artifacts export`')
    parser.add_argument('--quern-arguments', default='', help='more for quern-inference, in one word')
    parser.add_argument('--llama-server', help='the program')
    parser.add_argument('--gguf', help='its model')
    parser.add_argument('--llama-arguments', default='', help='more for llama-server, in one word')
    parser.add_argument('--threads', type=int, default=2, help='of servers that are started')
    parser.add_argument('--measure', nargs='+', choices=MEASURES, default=MEASURES,
                        help='beside tokens/s: load and prefix in each round, open (streams) and '
                             'overload at the end')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=int, default=30, help='of each run')
    parser.add_argument('--prompt-tokens', type=int, default=128)
    parser.add_argument('--output-tokens', type=int, default=64)
    parser.add_argument('--first-token-limit-ms', type=int, default=1000)
    parser.add_argument('--next-token-limit-ms', type=int, default=100)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--json', type=pathlib.Path, help='file for every figure of every round')
    parser.add_argument('--quern', default='build/bin/quern')
    options = parser.parse_args()
    if bool(options.servers) == bool(options.artifact):
        parser.error('give either addresses, or --artifact, --llama-server and --gguf')
    if options.artifact and not (options.llama_server and options.gguf):
        parser.error('--artifact wants --llama-server and --gguf too')
    random.seed(options.seed)

    with contextlib.ExitStack() as stack:
        servers = options.servers
        if not servers:
            directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
            servers = [start_quern(options, directory, stack), start_llama(options, directory, stack)]
        for server in servers:
            server.connect()
        for number in range(options.rounds):
            print(f'round {number + 1} of {options.rounds}', file=sys.stderr)
            measure_streams(servers, options)
            if 'load' in options.measure:
                measure_load(servers, options)
            if 'prefix' in options.measure:
                for server in servers:
                    measure_prefix_reuse(server)
        for server in servers:
            if 'open' in options.measure:
                measure_open_streams(server, options)
            if 'overload' in options.measure:
                measure_overload(server, options)
        print(f'prompts of {options.prompt_tokens}, answers of {options.output_tokens} tokens, '
              f'{options.seconds} s a run, median of {options.rounds} rounds; good: first token within '
              f'{options.first_token_limit_ms} ms, then {options.next_token_limit_ms} ms a token')
        report(servers)
        if options.json:
            options.json.write_text(json.dumps({server.name: server.figures for server in servers}))


if __name__ == '__main__':
    main()
