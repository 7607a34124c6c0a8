#!/usr/bin/env python3
"""Block-AP's training step here against the oracle's in PyTorch, on a block of SmolLM2-135M.

Usage: compare_speed.py BLOCK_AP_SPEED PYTHON [TOKENS [STEPS [RUNS]]]
  BLOCK_AP_SPEED  build/bin/block_ap_speed
  PYTHON          an interpreter with the PyTorch to compare with
Each runs RUNS times in turn; medians are printed, and what they are to each other.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    ours, python = sys.argv[1:3]
    tokens, steps, runs = (int(a) for a in (sys.argv[3:] + ["1024", "20", "5"][len(sys.argv) - 3:]))
    threads = str(len(os.sched_getaffinity(0)))
    oracle = pathlib.Path(__file__).with_name("block_ap.py")
    commands = {
        "oracle": [python, oracle, "--speed", str(tokens), str(steps), threads],
        "float32": [ours, "smollm2-135m", str(tokens), str(steps), threads, "FLOAT32"],
        "bfloat16": [ours, "smollm2-135m", str(tokens), str(steps), threads, "BFLOAT16"],
    }
    results = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name].append(json.loads(output))
    print(f"block of smollm2-135m, 2 sequences of {tokens} tokens a step, {threads} threads, "
          f"median of {runs} runs")
    median = lambda name, key: statistics.median(result[key] for result in results[name])
    for name in commands:
        line = (f"{name:9} {median(name, 'tokens_per_second'):8.0f} tokens/s"
                f"  {median(name, 'peak_rss_bytes') / 1e6:7.0f} MB")
        if name != "oracle":
            speeds = [a["tokens_per_second"] / b["tokens_per_second"]
                      for a, b in zip(results[name], results["oracle"])]
            memory = median(name, "peak_rss_bytes") / median("oracle", "peak_rss_bytes")
            line += (f"  {statistics.median(speeds):.2f}x its speed, {memory:.2f}x its memory, "
                     f"products at {100 * median(name, 'share'):.0f} % of the machine's rate")
        print(line)


if __name__ == "__main__":
    main()
