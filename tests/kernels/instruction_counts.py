#!/usr/bin/env python3
"""Counts the instructions of fixed kernel calls and compares them with instruction_counts.json.

    instruction_counts.py PROGRAM            fails when a count has changed
    instruction_counts.py PROGRAM --write    writes the counts

The same program, input and compiler give the same count on every machine, busy or not. More than
the tolerance above a golden count is a kernel that became slower; as much below it is one that
became faster, whose new count wants to be written down.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

GOLDENS = pathlib.Path(__file__).with_suffix('.json')
TOLERANCE = 0.02


def count(program):
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            ['valgrind', '--tool=callgrind', f'--callgrind-out-file={directory}/out', program],
            capture_output=True, text=True, check=False)
        if done.returncode == 77:
            print(f'skipped: {done.stdout.strip()}')
            sys.exit(77)
        if done.returncode != 0:
            sys.exit(f'{program}: exit {done.returncode}\n{done.stdout}{done.stderr[-4000:]}')
        counts = {}
        for path in pathlib.Path(directory).iterdir():
            text = path.read_text()
            trigger = re.search(r'^desc: Trigger: Client Request: (.*)$', text, re.M)
            if trigger:
                total = re.search(r'^(?:totals|summary): (\d+)', text, re.M)
                counts[trigger[1]] = int(total[1])
        return dict(sorted(counts.items()))


def main(arguments):
    counts = count(arguments[0])
    if arguments[1:] == ['--write']:
        GOLDENS.write_text(json.dumps(counts, indent=2) + '\n')
        return 0
    goldens = json.loads(GOLDENS.read_text())
    failed = counts.keys() != goldens.keys()
    for name in sorted(counts.keys() | goldens.keys()):
        now, golden = counts.get(name), goldens.get(name)
        change = now / golden - 1 if now and golden else None
        bad = change is None or abs(change) > TOLERANCE
        failed |= bad
        print(f'{name:24} {now or "-":>10} of {golden or "-":>10}'
              + (f' {change:+.1%}' if change is not None else '') + (' <--' if bad else ''))
    if failed:
        print(f'changed by more than {TOLERANCE:.0%}; if it is meant: {sys.argv[0]} '
              f'{arguments[0]} --write')
    return int(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
