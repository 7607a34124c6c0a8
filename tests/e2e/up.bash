# Sourced by tests of clients: real services with the checkpoint "tiny" below their model root, in a
# directory of their own, $work, until the script ends; $python of deploy/install.sh --tests.
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

"$QUERN_BIN_DIR/write_tiny_checkpoint" "$work/models/tiny"
"$QUERN_BIN_DIR/quern" --data-directory "$work/state" up --model-root "$work/models" --threads 1 >"$work/up.log" 2>&1 &
up=$!
for _ in $(seq 600); do
  [ ! -s "$work/state/quern.json" ] || break
  kill -0 "$up" || { cat "$work/up.log"; exit 1; }
  sleep 0.1
done
# Of "jobs", "inference" or "inference_http".
address() { "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$work/state/quern.json" "$1"; }
