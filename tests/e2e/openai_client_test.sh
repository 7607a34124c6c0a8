#!/usr/bin/env bash
# OpenAI's own Python package against a real server.
set -euo pipefail
source "$(dirname "$0")/up.bash"

"$QUERN_BIN_DIR/quern" --data-directory "$work/state" models load tiny --checkpoint tiny
"$python" "$QUERN_SOURCE_DIR/tests/e2e/openai_client.py" "$(address inference_http)" || { cat "$work/up.log"; exit 1; }
