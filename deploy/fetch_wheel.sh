#!/usr/bin/env bash
# Downloads one wheel from PyPI into a directory and checks its SHA-256.
#   deploy/fetch_wheel.sh NAME==VERSION SHA256 DIRECTORY
set -euo pipefail
[ $# = 3 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
into=$(mktemp -d "$3/fetch.XXXXXX")
trap 'rm -rf "$into"' EXIT
# A fixed interpreter and platform name the same file on every machine.
python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
  --python-version 3.11 --dest "$into" "$1"
wheel=$(ls "$into"/*.whl)
echo "$2  $wheel" | sha256sum --check --quiet - || {
  echo "fetch_wheel: $1 has another SHA-256 than $2: refusing to use it" >&2
  exit 1
}
mv "$wheel" "$3/"
