#!/usr/bin/env python3
"""docs/configuration.md from the programs' own --help.

    configuration_doc.py BIN_DIR            compares it with the committed file, and asks each
                                            program whether it refuses what lies beyond its ranges
    configuration_doc.py BIN_DIR --write    writes it
"""

import difflib
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = ROOT / 'docs' / 'configuration.md'
PROGRAMS = ['quern-jobs', 'quern-worker', 'quern-inference', 'quern-quantizer']
SUBCOMMANDS = ['up', 'quantize', 'tune', 'jobs list', 'artifacts export', 'models load', 'models alias',
               'complete', 'chat', 'eval', 'bench model', 'bench serve', 'bench speculation', 'health',
               'doctor', 'token create']
HEAD = """# Configuration

Generated from the programs' own `--help` by `tests/deploy/configuration_doc.py`; do not edit.

Every setting is a flag; there are no configuration files. A service checks its flags before it
does anything else. One that is refused is named in the log, and the service ends with status 78
(1 for a flag that does not exist or a value that is no number), so that a supervisor need not try
again. Flags are written `--model-root=DIRECTORY` or `--model-root DIRECTORY`; a flag that is given
twice has its last value. `--flagfile=FILE` reads flags from a file, one on a line.
"""
ENVIRONMENT = """## Environment

| variable | read by | meaning |
|---|---|---|
| `XDG_STATE_HOME`, `HOME` | `quern` | the data directory is `$XDG_STATE_HOME/quern`, or `$HOME/.local/state/quern` |
| `NO_COLOR` | `quern` | anything but empty: no colours |
| `grpc_proxy`, `https_proxy`, `http_proxy` | every program with gRPC | calls go through this HTTP proxy, the first that is set |
| `no_grpc_proxy`, `no_proxy` | every program with gRPC | hosts that are called directly, by the end of their names |
| `GRPC_VERBOSITY`, `GRPC_TRACE` | every program with gRPC | the gRPC library's own log, e.g. `DEBUG` and `http` |
| `LD_LIBRARY_PATH` | `quern-quantizer` | where LibTorch is, when it is not where it was built |
"""


def helptext(*command):
    # Abseil's --help ends with status 1.
    return subprocess.run([*command, '--help'], capture_output=True, text=True,
                          check=False).stdout


def split_range(text):
    """A description without the values that it allows, and those values."""
    found = re.search(r'(?:, |: )(\d+ to \d+|(?:\w+, )*\w+ or \w+)(?=;|$)', text)
    if not found:
        return text, ''
    return text[:found.start()] + text[found.end():], found.group(1)


def service_flags(program):
    """(flag, default, values, meaning) of an Abseil program."""
    # Long lines are broken between words.
    text = re.sub(r'\s+', ' ', helptext(program))
    rows = []
    pattern = r'--(\w+) \((.*?)\); default: (.*?);(?: currently: (.*?);)?(?= --| Flags| Try|$)'
    for name, meaning, default, current in re.findall(pattern, text):
        value = (current or default).strip('"')
        if meaning.endswith('; required'):
            meaning, value = meaning.removesuffix('; required'), '**required**'
        elif value:
            value = f'`{value}`'
        meaning, values = split_range(meaning)
        rows.append((f'--{name.replace("_", "-")}', value, values, meaning))
    if not rows:
        raise SystemExit(f'{program} --help names no flag')
    return rows


def cli_options(*command):
    """The same of a CLI11 (sub)command; first what it says it does."""
    lines = helptext(*command).splitlines()
    rows, section = [], ''
    for line in lines[1:]:
        if line and not line.startswith(' '):
            section = line
        elif section in ('Positionals:', 'Options:') and line.strip():
            if line.startswith('   '):  # the description of the line above
                rows[-1][3] = line.strip()
                continue
            head, _, meaning = line.strip().partition('  ')
            rows.append(cli_row(head, meaning.strip()))
    return lines[0], [row for row in rows if row[0] != '-h,--help']


def cli_row(head, meaning):
    name, _, rest = head.partition(' ')
    rest = re.sub(r' Excludes: .*', '', rest)
    default = '**required**' if 'REQUIRED' in rest else ''
    rest = rest.replace('REQUIRED', '')
    rest, equals, value = rest.partition('=')
    if equals:
        default = f'`{value.strip()}`'
    values = ''
    if found := re.search(r'\{(.*)\}', rest):
        values = found.group(1).replace(',', ', ')
    elif found := re.search(r'in \[(\S+) - (\S+)\]', rest):
        values = f'{found.group(1)} to {found.group(2)}'
    return [name, default, values, meaning]


def table(rows, first='flag'):
    lines = [f'| {first} | default | values | meaning |', '|---|---|---|---|']
    for name, default, values, meaning in rows:
        escaped = meaning.replace('|', '\\|')
        lines.append(f'| `{name}` | {default} | {values} | {escaped} |')
    return '\n'.join(lines) + '\n'


def document(bin_dir):
    parts = [HEAD]
    services = {name: service_flags(bin_dir / name) for name in PROGRAMS}
    for name, rows in services.items():
        usage = helptext(bin_dir / name).splitlines()[0].partition(': ')[2]
        parts.append(f'## {name}\n\n{usage}\n\n{table(rows)}')
    description, rows = cli_options(bin_dir / 'quern')
    parts.append(f'## quern\n\n{description} These options stand before or after any '
                 f'subcommand.\n\n{table(rows, "option")}')
    for subcommand in SUBCOMMANDS:
        description, rows = cli_options(bin_dir / 'quern', *subcommand.split())
        parts.append(f'### quern {subcommand}\n\n{description}.\n\n{table(rows, "option")}')
    parts.append(ENVIRONMENT)
    return '\n'.join(parts), services


def ranges_that_do_not_hold(bin_dir, services):
    """Each program must refuse, by name, the numbers beside its documented range."""
    wrong = []
    with tempfile.TemporaryDirectory() as root:
        for name, rows in services.items():
            given = {flag: root for flag, default, _, _ in rows if default == '**required**'}
            if name == 'quern-worker':
                given['--quantizer'] = '/bin/true'
            if name == 'quern-quantizer':
                given['--task'] = f'{root}/task.json'
            for flag, _, values, _ in rows:
                if not (limits := re.fullmatch(r'(\d+) to (\d+)', values)):
                    continue
                for value in int(limits[1]) - 1, int(limits[2]) + 1:
                    flags = [f'{key}={text}' for key, text in {**given, flag: value}.items()]
                    ended = subprocess.run([bin_dir / name, *flags], capture_output=True,
                                           text=True, timeout=60, check=False)
                    if ended.returncode == 0 or flag not in ended.stderr:
                        wrong.append(f'{name} {flag}={value}: {ended.stderr.strip()}')
    return wrong


def main(arguments):
    bin_dir = pathlib.Path(arguments[0]).resolve()
    text, services = document(bin_dir)
    if arguments[1:] == ['--write']:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(text, encoding='utf-8')
        return 0
    committed = TARGET.read_text(encoding='utf-8') if TARGET.exists() else ''
    difference = list(difflib.unified_diff(committed.splitlines(), text.splitlines(),
                                           'docs/configuration.md', 'the programs', lineterm=''))
    if difference:
        print('\n'.join(difference))
        print('docs/configuration.md is not what the programs say; write it with\n'
              f'  tests/deploy/configuration_doc.py {arguments[0]} --write')
    wrong = ranges_that_do_not_hold(bin_dir, services)
    for line in wrong:
        print(f'not refused by name: {line}')
    return 1 if difference or wrong else 0


if __name__ == '__main__':
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ['--write']):
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1:]))
