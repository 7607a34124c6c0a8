#!/usr/bin/env python3
"""Draws what the kernels reach below what the machine allows.

    quern --json bench machine >machine.json
    quern --json bench kernels >kernels.json
    deploy/roofline.py machine.json kernels.json roofline.png

Both runs with the same --threads and --kernels. Needs matplotlib (PyPI, or Debian's
python3-matplotlib).
"""

import json
import sys

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot

TOKENS = {1: 'o', 8: 's', 16: '^', 512: 'D'}
COLOURS = {'w2': '#4269d0', 'w3': '#efb118', 'w4': '#3ca951', 'w8': '#ff725c', 'f': '#9c6b4e',
           'b': '#9c6b4e', 'a': '#6cc5b0'}


def main(arguments):
    if len(arguments) != 3:
        sys.exit(__doc__)
    machine, kernels = (json.load(open(path)) for path in arguments[:2])
    for key in ('kernels', 'threads'):
        if machine[key] != kernels[key]:
            sys.exit(f'{key} differ: {machine[key]} and {kernels[key]}')
    memory = machine['memoryGbPerSecond']
    cache = max(row['gbPerSecond'] for row in machine['rows'])
    figure, axes = pyplot.subplots(figsize=(10, 6), constrained_layout=True)
    intensities = [2 ** (i / 4) for i in range(-8, 60)]
    for peak, name, style in ((machine['int8Gops'], 'int8', '-'),
                              (machine['floatGflops'], 'fp32', '--')):
        axes.plot(intensities, [min(peak, memory * i) for i in intensities], style, color='#333',
                  label=f'{name} peak {peak:.0f} GOPS, memory {memory:.1f} GB/s')
    axes.plot(intensities, [min(machine['int8Gops'], cache * i) for i in intensities], ':',
              color='#999', label=f'cache {cache:.0f} GB/s')
    seen = set()
    for row in kernels['rows']:
        name, tokens = row['kernel'], row['tokens']
        colour = next(c for start, c in COLOURS.items() if name.startswith(start))
        gops = row['operationsPerSecond'] * 1e-9
        label = {'f': 'dense', 'b': 'dense', 'a': 'attention'}.get(name[0], name[:2])
        label += f', {tokens} token' + ('s' if tokens > 1 else '')
        axes.scatter(gops / row['gbPerSecond'], gops, marker=TOKENS.get(tokens, 'x'), color=colour,
                     edgecolor='white', s=60, zorder=3, label=None if label in seen else label)
        seen.add(label)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log', base=2)
    axes.set_xlim(0.5, 2 ** 14)
    axes.set_ylim(4, 2 * machine['int8Gops'])
    axes.set_xlabel('operations per byte of weights, or of keys and values')
    axes.set_ylabel('10^9 operations per second')
    axes.set_title(f'{machine["kernels"]}, {machine["threads"]} threads')
    axes.grid(True, which='major', color='#ddd')
    axes.legend(fontsize=8, ncols=2, loc='lower right')
    figure.savefig(arguments[2], dpi=120)


if __name__ == '__main__':
    main(sys.argv[1:])
