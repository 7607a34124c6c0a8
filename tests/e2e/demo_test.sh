#!/usr/bin/env bash
# deploy/demo.sh on a tiny model: it ends well, --keep leaves services that answer, Ctrl-C stops
# all that it started, and it empties no directory that is not its own.
set -euo pipefail
: "${QUERN_BIN_DIR:?set by ctest}" "${QUERN_SOURCE_DIR:?set by ctest}"
work=$(mktemp -d)
cleanup() {
  pkill -KILL -f -- "$work" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "demo_test: $*" >&2; exit 1; }
running() { pgrep -f -- "--data-dir[a-z]*[= ]$work|$work/" -l | grep -v demo_test || true; }

"$QUERN_BIN_DIR/write_tiny_checkpoint" "$work/models/tiny"
demo=("$QUERN_SOURCE_DIR/deploy/demo.sh" --model "$work/models/tiny" --group-size 32)
printf 'once upon a time there was a mill. %.0s' $(seq 200) >"$work/held_out.txt"

# 1. From start to end, with a text to measure on, then with the services left running.
"${demo[@]}" --state "$work/first" --eval-text "$work/held_out.txt" --keep >"$work/out" 2>&1 ||
  { cat "$work/out"; fail 'the demo failed'; }
for wanted in 'round to nearest' 'Quern' 'held_out.txt' 'before,' 'tokens/s' 'quern_generated_tokens_total' \
  'how to go on'; do
  grep -qF -- "$wanted" "$work/out" || { cat "$work/out"; fail "it never printed '$wanted'"; }
done
up=$(sed -n 's/.*stop them with: kill //p' "$work/out")
"$QUERN_BIN_DIR/quern" --data-directory "$work/first/quern" complete demo "The" --max-tokens 4 >/dev/null ||
  fail '--keep left no service that answers'
kill -TERM "$up"
tail --pid="$up" -f /dev/null
[ -z "$(running)" ] || fail "left after kill: $(running)"

# 2. Ctrl-C while the job runs: a terminal signals the whole foreground group. (Shells start
# background commands with SIGINT ignored, which a terminal does not.)
setsid env --default-signal=INT "${demo[@]}" --state "$work/second" --preset best >"$work/out" 2>&1 &
demo_pid=$!
for _ in $(seq 1200); do
  grep -q 'CALIBRATING\|BLOCK_AP ' "$work/out" 2>/dev/null && break
  kill -0 "$demo_pid" 2>/dev/null || { cat "$work/out"; fail 'the demo ended before Ctrl-C'; }
  sleep 0.05
done
kill -INT -- "-$demo_pid"
code=0
wait "$demo_pid" || code=$?
[ "$code" = 130 ] || { cat "$work/out"; fail "Ctrl-C: exit status $code, wanted 130"; }
[ -z "$(running)" ] || fail "left after Ctrl-C: $(running)"

# 3. A directory of someone else's stays as it is.
mkdir "$work/mine"
echo keep >"$work/mine/file"
code=0
"${demo[@]}" --state "$work/mine" >/dev/null 2>"$work/err" || code=$?
[ "$code" = 2 ] && [ -f "$work/mine/file" ] || fail "--state took a foreign directory ($code)"
