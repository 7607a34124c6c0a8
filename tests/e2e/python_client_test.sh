#!/usr/bin/env bash
# Runs the README's Python example as a user would: its stub command, its program, real services.
set -euo pipefail
source "$(dirname "$0")/up.bash"

cp -r "$QUERN_SOURCE_DIR/proto" "$work/proto"
(cd "$work" && "$python" -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. \
  $(cd "$work" && find proto/quern -name '*.proto'))
# Exactly the program that the README prints.
awk '/^```python$/ { on = 1; next } /^```$/ { on = 0 } on' "$QUERN_SOURCE_DIR/README.md" >"$work/client.py"

cd "$work"
"$python" client.py "$(address jobs)" "$(address inference)" tiny >"$work/out" 2>&1 || { cat "$work/out" "$work/up.log"; exit 1; }
[ -s "$work/out" ] || { echo 'the example streamed no text'; exit 1; }
