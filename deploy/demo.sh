#!/usr/bin/env bash
# The main job from start to end: builds Quern, starts its services, quantizes a model, compares it
# with its source, loads it and streams an answer.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'EOF'
deploy/demo.sh [options]
  --bits 2|3|4          bits of a weight (4)
  --group-size N        inputs that share a scale: 32, 64, 128, or 0 for a whole channel (64)
  --model PATH          a Hugging Face directory or .gguf file (SmolLM2-135M-Instruct, fetched)
  --calibration FILE    .txt or .jsonl to calibrate on (text that the model itself samples)
  --eval-text FILE      text to measure on as well
  --preset NAME         quick, standard or best (quick)
  --prompt TEXT         the question (What is the capital of France?)
  --state DIRECTORY     new, or an earlier demo's, for the services' data and log (build/demo)
  --keep                leave the services running
EOF
}

bits=4 group_size=64 model= calibration= eval_text= preset=quick state=build/demo keep=
prompt='What is the capital of France?'
while [ $# -gt 0 ]; do
  case "$1" in
    --keep) keep=1; shift; continue ;;
    -h | --help) usage; exit 0 ;;
  esac
  [ $# -ge 2 ] || { usage >&2; exit 2; }
  case "$1" in
    --bits) bits=$2 ;;
    --group-size) group_size=$2 ;;
    --model) model=$2 ;;
    --calibration) calibration=$2 ;;
    --eval-text) eval_text=$2 ;;
    --preset) preset=$2 ;;
    --prompt) prompt=$2 ;;
    --state) state=$2 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift 2
done
for file in "$calibration" "$eval_text"; do
  [ -z "$file" ] || [ -f "$file" ] || { echo "demo: $file: no such file" >&2; exit 2; }
done
[ -z "$model" ] || [ -e "$model" ] || { echo "demo: $model: no such file or directory" >&2; exit 2; }

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# --- Build ------------------------------------------------------------------------------------
deploy/install.sh
# A build folder that tests/run.sh configured stays as it is.
[ -f build/CMakeCache.txt ] ||
  cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUERN_TESTS=OFF -DQUERN_JUMBO=ON \
    -Wno-dev >/dev/null
ninja -C build --quiet quern quern-jobs quern-worker quern-inference quern-quantizer

# --- Model and texts --------------------------------------------------------------------------
[ -n "$model" ] || model=$(deploy/fetch_model.sh)
model=$(realpath "$model")

if [ -e "$state" ] && [ ! -e "$state/.demo" ]; then
  echo "demo: --state $state exists and no earlier demo made it: name another" >&2
  exit 2
fi
rm -rf "$state"
mkdir -p "$state/texts"
touch "$state/.demo"
options=()
# The services read below their data root only, so the texts are copied there.
if [ -n "$calibration" ]; then
  cp "$calibration" "$state/texts/"
  options+=(--calibration "$(basename "$calibration")")
fi
if [ -n "$eval_text" ]; then
  cp "$eval_text" "$state/texts/"
  options+=(--eval-text "$(basename "$eval_text")")
fi

# --- Services ---------------------------------------------------------------------------------
quern=(build/bin/quern --data-directory "$state/quern")
say 'starting quern-jobs, quern-worker and quern-inference'
mkdir -p "$state/quern"
# A session of its own: Ctrl-C reaches this script, which stops the services in good order.
setsid "${quern[@]}" up --model-root "$(dirname "$model")" --data-root "$state/texts" \
  >"$state/up.log" 2>&1 &
up=$!
stop() {
  trap - EXIT INT TERM
  if kill -0 "$up" 2>/dev/null; then
    kill -TERM "$up"
    wait "$up" || true
  fi
}
trap stop EXIT
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM
until grep -qs 'quern is up' "$state/up.log"; do
  kill -0 "$up" 2>/dev/null || { cat "$state/up.log" >&2; exit 1; }
  sleep 0.1
done

# --- The job ----------------------------------------------------------------------------------
say "quantizing $(basename "$model") to $bits bits"
started=$SECONDS
"${quern[@]}" quantize "$(basename "$model")" --bits "$bits" --group-size "$group_size" \
  --preset "$preset" "${options[@]}"
printf 'took %d s, evaluation included\n' "$((SECONDS - started))"

artifact=$("${quern[@]}" --json artifacts list --limit 1 |
  python3 -c 'import json, sys; print(json.load(sys.stdin)["artifacts"][0]["name"])')
say 'loading it into quern-inference'
"${quern[@]}" models load demo "$artifact"

say "asking: $prompt"
"${quern[@]}" chat demo "$prompt" --max-tokens 64 --stats

# --- What was measured ------------------------------------------------------------------------
say 'five of the metrics'
python3 - "$state/quern/quern.json" <<'EOF'
import json
import sys
import urllib.request

addresses = json.load(open(sys.argv[1]))


def series(address):
    text = urllib.request.urlopen(f'http://{address}/metrics', timeout=10).read().decode()
    for line in text.splitlines():
        if line and not line.startswith('#'):
            name, _, value = line.rpartition(' ')
            yield name, float(value)


inference = dict(series(addresses['inference_metrics']))
jobs = dict(series(addresses['jobs_metrics']))
label = '{model="demo"}'
for name, values, key in [
    ('jobs that succeeded', jobs, 'quern_jobs{state="SUCCEEDED"}'),
    ('tokens of prompts', inference, f'quern_prompt_tokens_total{label}'),
    ('tokens generated', inference, f'quern_generated_tokens_total{label}'),
    ('seconds to first token, sum', inference, f'quern_time_to_first_token_seconds_sum{label}'),
    ('KV pages in use', inference, 'quern_kv_pages{state="used"}'),
]:
    print(f'  {name:30} {values[key]:<10g} {key}')
EOF

# --- How to go on -----------------------------------------------------------------------------
say 'how to go on'
if [ -n "$keep" ]; then
  trap - EXIT INT TERM
  cat <<EOF
  the services are running; stop them with: kill $up
  talk to the model:        ${quern[*]} chat demo
  quantize another model:   ${quern[*]} quantize FILE_OR_DIRECTORY_BESIDE_THIS_ONE --bits 3
  keep the artifact:        ${quern[*]} artifacts export ${artifact#artifacts/} DIRECTORY
EOF
else
  cat <<EOF
  again, and leave the services running:  deploy/demo.sh --keep
  fewer bits:                             deploy/demo.sh --bits 3
  your own model:                         deploy/demo.sh --model HUGGING_FACE_DIRECTORY_OR_GGUF
  the services alone:                     build/bin/quern up --model-root DIRECTORY
EOF
fi
