#!/usr/bin/env bash
# The images and the Compose file for real, without a Docker daemon: builds the images with buildah,
# brings the stack up with podman-compose, runs a job on a real model through it from the host,
# streams tokens, kills the worker in the middle of the job and restarts the inference service in the
# middle of a stream, and compares what comes out with runs that nothing disturbed.
#   tests/deploy/run.sh [--keep]       --keep leaves the stack running
# Needs root. Exit status 77: this machine cannot run containers; the reason is printed.
set -euo pipefail
cd "$(dirname "$0")/../.."
keep=
[ "${1:-}" != --keep ] || keep=1

skip() { echo "SKIPPED: $*"; exit 77; }
fail() { echo "containers: $*" >&2; exit 1; }
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

[ "$(id -u)" = 0 ] || skip 'needs root, for buildah and podman without a user namespace'
step 'install'
deploy/install.sh --containers
here=tests/deploy/containers
work=$(mktemp -d)
export CONTAINERS_CONF=$PWD/$here/containers.conf BUILDAH_ISOLATION=chroot
compose=(.cache/compose/bin/podman-compose -f deploy/compose.yaml -p quern-test)
cleanup() {
  code=$?
  [ "$code" = 0 ] || "${compose[@]}" logs 2>&1 | tail -60 || true
  if [ -n "$keep" ]; then
    echo "left running; stop it with: ${compose[*]} down -v"
  else
    "${compose[@]}" down -v -t 5 >/dev/null 2>&1 || true
  fi
  rm -rf "$work"
}

step 'base image'
$here/base_image.sh
base=docker.io/library/debian:bookworm-slim
probe=$(podman run --rm "$base" true 2>&1) || skip "podman cannot run a container here: $probe"
trap cleanup EXIT

step 'images'
for target in jobs inference cli worker; do
  buildah bud --layers --network=host -q -f docker/Dockerfile --target "$target" \
    -t "localhost/quern-$target" . >/dev/null
done
buildah bud --layers --network=host -q -f $here/Dockerfile.prometheus \
  -t localhost/quern-test-prometheus . >/dev/null
podman images --format '{{.Repository}} {{.Size}}' | grep 'localhost/quern'
# name and limit in bytes
while read -r name limit; do
  size=$(podman image inspect --format '{{.Size}}' "localhost/$name")
  [ "$size" -le "$limit" ] || fail "image $name has $size bytes, more than $limit"
done <<'LIMITS'
quern-jobs 200000000
quern-inference 200000000
quern-cli 200000000
quern-worker 900000000
LIMITS

step 'stack'
mkdir -p "$work/data" "$work/secrets"
echo unused >"$work/secrets/grafana"
model=$(deploy/fetch_model.sh)
export QUERN_MODEL_ROOT=$(dirname "$model") QUERN_DATA_ROOT=$work/data
export QUERN_GRAFANA_PASSWORD_FILE=$work/secrets/grafana
export QUERN_PROMETHEUS_IMAGE=localhost/quern-test-prometheus
export QUERN_JOBS_PORT=17400 QUERN_INFERENCE_PORT=17420 QUERN_PROMETHEUS_PORT=19090
# Grafana's image comes from a registry, which need not be reachable here.
"${compose[@]}" up -d jobs worker inference prometheus
container() { echo "quern-test_$1_1"; }
healthy() { podman healthcheck run "$(container "$1")" >/dev/null 2>&1; }
# Polls a command until it succeeds.
await() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$limit" ] || fail "$what: not within its limit"
    sleep 0.2
  done
}
for service in jobs worker inference; do await 60 "$service healthy" healthy "$service"; done

# The client is an image too; it reaches the published ports as a program on the host does.
quern() {
  podman run --rm --network=host --read-only localhost/quern-cli \
    --jobs 127.0.0.1:$QUERN_JOBS_PORT --inference 127.0.0.1:$QUERN_INFERENCE_PORT "$@"
}
field() { python3 -c 'import json,sys; print(eval("d" + sys.argv[1], {"d": json.load(sys.stdin)}))' "$1"; }

step 'a job, undisturbed, then the same with the worker killed in the middle'
task=("$(basename "$model")" --bits 4 --method block_ap --block-ap-samples 2 --seed 7)
run_job() { quern --json quantize "${task[@]}" --calibration calibration.txt "$@" | tail -1; }
