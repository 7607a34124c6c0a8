#!/usr/bin/env bash
# The main job on a real model, as the README has it: deploy/demo.sh quantizes SmolLM2-135M to
# 4 bits, and the result must stay close to its source and still know the capital of France.
set -euo pipefail
: "${QUERN_SOURCE_DIR:?set by ctest}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$QUERN_SOURCE_DIR/deploy/demo.sh" --bits 4 --state "$work/state" | tee "$work/out"
kl=$(awk '$1 == "Quern" { print $3; exit }' "$work/out")
awk -v kl="$kl" 'BEGIN { exit !(kl > 0 && kl <= 0.15) }' ||
  { echo "smollm2_test: KL to the source is '$kl', wanted at most 0.15" >&2; exit 1; }
grep -q '^The capital of France is Paris' "$work/out" ||
  { echo 'smollm2_test: the answer does not say Paris' >&2; exit 1; }
