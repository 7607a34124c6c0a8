#!/usr/bin/env python3
"""Draws what training reported: each block's error, and the loss end to end.

    quern --json quantize MODEL --bits 2 >w2.jsonl          # or: quern --json jobs watch JOB
    deploy/loss_plot.py w2.jsonl [other.jsonl ...] losses.png

Several files are drawn over each other, named by their files. Needs matplotlib (PyPI, or Debian's
python3-matplotlib).
"""

import json
import pathlib
import sys

import matplotlib
matplotlib.use('Agg')
from matplotlib import pyplot

STAGES = {'BLOCK_AP': 'error of each block', 'E2E_QP': 'loss end to end, nats per token'}


def losses_of(path):
    """Of each stage that trains, loss by number of blocks or steps done."""
    losses = {stage: {} for stage in STAGES}
    decoder = json.JSONDecoder()
    text = open(path).read()
    position = 0
    while position < len(text.rstrip()):
        event, position = decoder.raw_decode(text, position)
        position += len(text[position:]) - len(text[position:].lstrip())
        progress = event.get('job', event).get('progress', {})
        if progress.get('stage') in losses and 'loss' in progress:
            losses[progress['stage']][int(progress.get('completedCount', 0))] = progress['loss']
    return losses


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__)
    losses = {pathlib.Path(path).stem: losses_of(path) for path in arguments[:-1]}
    # Rounding to nearest reports none, and end to end is not of every method.
    stages = [stage for stage in STAGES if any(of[stage] for of in losses.values())]
    if not stages:
        sys.exit('no file tells of a loss')
    figure, axes = pyplot.subplots(1, len(stages), figsize=(6.5 * len(stages), 4.5), squeeze=False,
                                   constrained_layout=True)
    for axis, stage in zip(axes[0], stages):
        for name, of in losses.items():
            if of[stage]:
                axis.plot(*zip(*sorted(of[stage].items())), marker='.', markersize=4, label=name)
        axis.set_title(STAGES[stage], fontsize=10)
        axis.set_xlabel('block' if stage == 'BLOCK_AP' else 'step')
        axis.set_yscale('log')
        axis.grid(color='#eee')
        axis.legend(fontsize=8)
    figure.savefig(arguments[-1], dpi=110)


if __name__ == '__main__':
    main(sys.argv[1:])
