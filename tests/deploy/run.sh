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
# shellcheck source=tests/deploy/containers/stack.bash
. tests/deploy/containers/stack.bash

[ "$(id -u)" = 0 ] || skip 'needs root, for buildah and podman without a user namespace'
step 'install'
deploy/install.sh --containers
here=tests/deploy/containers
export CONTAINERS_CONF=$PWD/$here/containers.conf BUILDAH_ISOLATION=chroot

step 'base image'
$here/base_image.sh
base=docker.io/library/debian:bookworm-slim
probe=$(podman run --rm "$base" true 2>&1) || skip "podman cannot run a container here: $probe"

step 'images'
for target in jobs inference cli worker; do
  # Docker's format: the other one has no health checks.
  buildah bud --format docker --layers --network=host -q -f docker/Dockerfile --target "$target" \
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

# With TLS and tokens first; it ends with nothing running.
tests/deploy/tls.sh

step 'stack'
stack quern-test deploy/compose.yaml
start_stack

step 'a first answer, from the source as it is, by the client in the stack'
in_stack models load source --checkpoint "$(basename "$model")"
text=$(in_stack complete source 'The capital of France is' --max-tokens 8)
[[ $text = *Paris* ]] || fail "the source said: $text"
in_stack models unload source

# The client is an image too; it reaches the published ports as a program on the host does.
quern() {
  podman run --rm --network=host --read-only localhost/quern-cli \
    --jobs 127.0.0.1:$QUERN_JOBS_PORT --inference 127.0.0.1:$QUERN_INFERENCE_PORT "$@"
}

# A job on the real model, small enough for minutes. The container's clock, locale and threads are
# its own, so equal artifacts say that none of them matters.
submit() {
  quern --json quantize "$(basename "$model")" --bits 4 --method BLOCK_AP --preset quick \
    --block-ap-samples 2 --calibration calibration.txt --seed 7 --detach | field '["name"]'
}
blocks_done() {
  local done
  done=$(job_field "$1" '.get("progress", {}).get("stage", "") == "BLOCK_AP" and int(d["progress"]["completedCount"])')
  [ "$done" != False ] && [ "$done" -ge "$2" ]
}

step 'a job that nothing disturbs'
artifact=$(artifact_of "$(submit)")

step 'the same job, its worker killed in the middle'
job=$(submit)
await 300 "some blocks of $job" blocks_done "$job" 5
podman kill -s KILL "$(container worker)" >/dev/null
podman start "$(container worker)" >/dev/null
disturbed=$(artifact_of "$job")
[ "$disturbed" = "$artifact" ] || fail "killed in the middle, the job gave $disturbed, not $artifact"

step 'streams, and the inference service killed in the middle of one'
quern models load demo "$artifact"
answer() { quern complete demo 'The capital of France is' --max-tokens 40; }
before=$(answer)
code=0
quern complete demo 'Once upon a time' --max-tokens 4000 >"$work/stream" 2>"$work/stream.err" &
stream=$!
await 60 'the first text of the stream' test -s "$work/stream"
podman kill -s KILL "$(container inference)" >/dev/null
wait "$stream" || code=$?
[ "$code" != 0 ] && grep -q UNAVAILABLE "$work/stream.err" ||
  fail "the broken stream ended with $code and said: $(cat "$work/stream.err")"
podman start "$(container inference)" >/dev/null
await 60 'inference healthy again' healthy inference
active() { quern --json models list | grep -q '"state":"ACTIVE"'; }
await 60 'the model loaded again by itself' active
after=$(answer)
[ "$after" = "$before" ] || fail "after the restart: '$after', before: '$before'"

step 'what Prometheus saw'
await 60 'three targets up' holds 'up == 1' 3
await 60 'two jobs succeeded' holds 'quern_jobs{state="SUCCEEDED"} == 2' 1

step 'a stop is no kill'
podman stop -t 60 "$(container worker)" "$(container inference)" "$(container jobs)" >/dev/null
for service in worker inference jobs; do
  code=$(podman inspect --format '{{.State.ExitCode}}' "$(container "$service")")
  [ "$code" = 0 ] || fail "$service ended with $code after SIGTERM"
done
step 'done'
