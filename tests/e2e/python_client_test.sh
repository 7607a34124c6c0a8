#!/usr/bin/env bash
# Runs the README's Python example as a user would: its stub command, its program, real services.
set -euo pipefail
: "${QUERN_BIN_DIR:?set by ctest}" "${QUERN_SOURCE_DIR:?set by ctest}"
python=$QUERN_SOURCE_DIR/.cache/python/bin/python
[ -x "$python" ] || { echo "$python is missing: run deploy/install.sh --tests" >&2; exit 1; }
work=$(mktemp -d)
up=
cleanup() {
  [ -z "$up" ] || { kill -TERM "$up" 2>/dev/null && wait "$up" || true; }
  rm -rf "$work"
}
trap cleanup EXIT

cp -r "$QUERN_SOURCE_DIR/proto" "$work/proto"
(cd "$work" && "$python" -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \
  $(cd "$work" && find proto/quern -name '*.proto'))
# Exactly the program that the README prints.
awk '/^```python$/ { on = 1; next } /^```$/ { on = 0 } on' "$QUERN_SOURCE_DIR/README.md" >"$work/client.py"

"$QUERN_BIN_DIR/write_tiny_checkpoint" "$work/models/tiny"
"$QUERN_BIN_DIR/quern" --data-directory "$work/state" up --model-root "$work/models" --threads 1 >"$work/up.log" 2>&1 &
up=$!
for _ in $(seq 600); do
  [ ! -s "$work/state/quern.json" ] || break
  kill -0 "$up" || { cat "$work/up.log"; exit 1; }
  sleep 0.1
done
address() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/state/quern.json" "$1"; }
cd "$work"
"$python" client.py "$(address jobs)" "$(address inference)" tiny >"$work/out" 2>&1 || { cat "$work/out" "$work/up.log"; exit 1; }
[ -s "$work/out" ] || { echo 'the example streamed no text'; exit 1; }
