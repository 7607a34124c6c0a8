#!/usr/bin/env python3
"""Draws what `quern bench serve` measured.

    quern --json bench serve my-model --rates 1,2,4,8 >quern.json
    deploy/serve_plot.py quern.json [other.json ...] serve.png

Of several rates (or numbers of streams): latencies and goodput over them. Of one: the distribution of
what its requests saw. Several files, of several servers, are drawn beside each other, named by their
files. Needs matplotlib (PyPI, or Debian's python3-matplotlib).
"""

import json
import pathlib
import sys

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot

COLOURS = ['#4269d0', '#efb118', '#3ca951', '#ff725c', '#9c6b4e', '#6cc5b0']
LATENCIES = {'firstTokenSeconds': 'first token', 'nextTokenSeconds': 'next token'}


def key_of(document):
    return 'streams' if 'streams' in document['rows'][0] else 'requestsPerSecond'


def plot_over_load(documents, axes):
    key = key_of(documents[0][1])
    for colour, (name, document) in zip(COLOURS, documents):
        rows = sorted(document['rows'], key=lambda row: row[key])
        load = [row[key] for row in rows]
        for axis, (member, title) in zip(axes, LATENCIES.items()):
            for percentile, style in (('p50', '-'), ('p90', '--'), ('p99', ':')):
                axis.plot(load, [row[member][percentile] * 1e3 for row in rows], style, marker='.',
                          color=colour, label=f'{name} {percentile}')
            axis.set_ylabel(f'{title}, ms')
            if any(row[member]['p50'] > 0 for row in rows):
                axis.set_yscale('log')
        if key == 'streams':
            axes[2].plot(load, [row['outputTokensPerSecond'] for row in rows], marker='.',
                         color=colour, label=name)
            axes[2].set_ylabel('tokens/s')
        else:
            axes[2].plot(load, [row['goodPerSecond'] for row in rows], marker='.', color=colour,
                         label=f'{name}, good')
            axes[2].plot(load, [row['refused'] / document['seconds'] for row in rows], ':',
                         marker='.', color=colour, label=f'{name}, refused')
            axes[2].set_ylabel('requests/s')
    if key != 'streams':
        loads = [row[key] for _, document in documents for row in document['rows']]
        axes[2].plot([0, max(loads)], [0, max(loads)], color='#bbb', linewidth=1, label='offered')
    for axis in axes:
        axis.set_xlabel('streams' if key == 'streams' else 'offered requests/s')


def plot_distribution(documents, axes):
    titles = {**LATENCIES, 'wholeSeconds': 'whole answer'}
    for colour, (name, document) in zip(COLOURS, documents):
        row = document['rows'][0]
        for axis, (member, title) in zip(axes, titles.items()):
            values = [value * 1e3 for value in row[member]['percentiles']]
            axis.plot(values, range(len(values)), color=colour, label=name)
            axis.set_xlabel(f'{title}, ms')
            axis.set_ylabel('% of requests within it')


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__)
    documents = [(pathlib.Path(path).stem, json.load(open(path))) for path in arguments[:-1]]
    if len({key_of(document) for _, document in documents}) > 1:
        sys.exit('some are of rates and some of numbers of streams')
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), constrained_layout=True)
    over_load = any(len(document['rows']) > 1 for _, document in documents)
    (plot_over_load if over_load else plot_distribution)(documents, axes)
    first = documents[0][1]
    figure.suptitle(f'{first["seconds"]} s each, answers of {first["outputTokens"]} tokens; good: first '
                    f'token within {first["firstTokenLimitMs"]} ms, then {first["nextTokenLimitMs"]} ms '
                    'a token', fontsize=10)
    for axis in axes:
        axis.grid(True, which='major', color='#ddd')
        axis.legend(fontsize=8)
    figure.savefig(arguments[-1], dpi=120)


if __name__ == '__main__':
    main(sys.argv[1:])
