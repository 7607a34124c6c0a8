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
    figure, axes = pyplot.subplots(1, len(STAGES), figsize=(12, 4.5), constrained_layout=True)
    drawn = 0
    for path in arguments[:-1]:
        name = pathlib.Path(path).stem
        for axis, points in zip(axes, losses_of(path).values()):
            if points:
                axis.plot(*zip(*sorted(points.items())), marker='.', markersize=4, label=name)
                drawn += 1
    if not drawn:
        sys.exit('no file tells of a loss: was the job watched while it trained?')
    for axis, (stage, title) in zip(axes, STAGES.items()):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel('block' if stage == 'BLOCK_AP' else 'step')
        axis.set_yscale('log')
        axis.grid(color='#eee')
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(arguments[-1], dpi=110)


if __name__ == '__main__':
    main(sys.argv[1:])
