#!/usr/bin/env bash
# The stack with TLS and tokens, as deploy/compose.tls.yaml and deploy/make_credentials.sh make it, from
# the images of run.sh, which calls this: who has the CA and a token is served, who lacks one is told
# what, jobs and scrapes pass, and renewed credentials count without a restart.
#   tests/deploy/tls.sh [--keep]       --keep leaves the stack running
set -euo pipefail
cd "$(dirname "$0")/../.."
keep=
[ "${1:-}" != --keep ] || keep=1
# shellcheck source=tests/deploy/containers/stack.bash
. tests/deploy/containers/stack.bash
export CONTAINERS_CONF=$PWD/tests/deploy/containers/containers.conf

step 'TLS: credentials and stack'
stack quern-tls-test deploy/compose.yaml deploy/compose.tls.yaml
chmod 755 "$work"  # the client's container goes through it
credentials=$work/credentials
deploy/make_credentials.sh "$credentials"
deploy/make_credentials.sh "$work/other" >/dev/null
export QUERN_CREDENTIALS=$credentials
start_stack

# Programs of the host: with no credential, with the CA alone, and as a client who has a token.
bare() {
  podman run --rm --network=host --read-only -v "$work:/tls:ro" localhost/quern-cli \
    --jobs 127.0.0.1:$QUERN_JOBS_PORT --inference 127.0.0.1:$QUERN_INFERENCE_PORT "$@"
}
trusting() { bare --tls-ca /tls/credentials/ca.crt "$@"; }
as() { trusting --token-file "/tls/credentials/clients/$1.token" "${@:2}"; }
quern() { as admin "$@"; }
https=https://127.0.0.1:$QUERN_INFERENCE_HTTP_PORT
plain() { curl -sS --noproxy '*' --max-time 60 "$@"; }
with_ca() { plain --cacert "$credentials/ca.crt" "$@"; }
with_token() { with_ca -H "Authorization: Bearer $(cat "$credentials/clients/submitter.token")" "$@"; }

step 'TLS: who lacks a credential is told which'
refused() { # TEXT COMMAND...
  local wanted=$1 code=0
  shift
  "$@" >"$work/said" 2>&1 || code=$?
  grep -qF -- "$wanted" "$work/said" || fail "$*: ended with $code, without '$wanted': $(cat "$work/said")"
}
refused 'give --tls-ca if it takes TLS' bare jobs list
refused 'does not come from the CA in --tls-ca' bare --tls-ca /tls/other/ca.crt jobs list
refused 'no credential came' trusting jobs list
refused '--token-file names the token' trusting models list
refused 'the token is not known here' trusting --token-file /tls/other/clients/admin.token jobs list
refused 'PERMISSION_DENIED' as submitter models load demo --checkpoint "$(basename "$model")"
refused 'unable to get local issuer certificate' plain "$https/v1/models"
refused 'no credential came' with_ca "$https/v1/models"
refused 'Empty reply' plain "${https/https/http}/v1/models"

step 'TLS: text over gRPC and HTTPS'
in_stack models load source --checkpoint "$(basename "$model")"
text=$(as submitter complete source 'The capital of France is' --max-tokens 8)
[[ $text = *Paris* ]] || fail "gRPC said: $text"
text=$(with_token "$https/v1/completions" -H 'Content-Type: application/json' \
  -d '{"model": "source", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}')
[[ $text = *Paris* ]] || fail "HTTPS said: $text"
quern models unload source

step 'TLS: a job'
job=$(as submitter --json quantize "$(basename "$model")" --bits 4 --method RTN --detach | field '["name"]')
artifact=$(artifact_of "$job")
quern models load demo "$artifact"
await 60 'three targets up' holds 'up == 1' 3
# What else it finds here is not the stack's.
in_stack doctor --jobs-metrics=jobs:7401 --worker-metrics=worker:7411 --inference-metrics=inference:7421 \
  >"$work/doctor" || true
for address in jobs:7401 worker:7411 inference:7421; do
  grep -q "$address is ready" "$work/doctor" || fail "quern doctor said: $(cat "$work/doctor")"
done

step 'TLS: new credentials without a restart'
started() {
  for service in jobs worker inference prometheus; do
    podman inspect --format '{{.State.StartedAt}}' "$(container "$service")"
  done
}
certificate() {
  openssl s_client -alpn h2 -connect "127.0.0.1:$1" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
changed() { local now; now=$(certificate "$1") && [ "$now" != "$before" ]; }
since=$(started)
before=$(certificate "$QUERN_JOBS_PORT")
cp -a "$credentials/clients" "$work/old"
deploy/make_credentials.sh --renew "$credentials"
for port in "$QUERN_JOBS_PORT" "$QUERN_INFERENCE_PORT" "$QUERN_INFERENCE_HTTP_PORT"; do
  await 10 "the new certificate at $port" changed "$port"
done
quern models list
old_token() { trusting --token-file /tls/old/admin.token jobs list; }
old_token
# Before their hour has passed, for good.
sed -i -E '/^(admin|submitter|worker|inference|prometheus) .* expires=/d' "$credentials/services/tokens"
withdrawn() { ! old_token >"$work/said" 2>&1 && grep -q 'the token is not known here' "$work/said"; }
await 10 'the old token refused' withdrawn
with_token -f "$https/v1/models" >/dev/null

# The worker leases, fetches the artifact and reports with its new token.
job=$(as submitter --json jobs evaluate "$artifact" --text calibration.txt --chunks 1 --detach | field '["name"]')
succeeded "$job"
# Scraped since: a certificate and twice the tokens were read again.
await 60 'scrapes after the renewal' holds 'sum by (job) (quern_security_reloads_total{outcome="ok"}) >= 3' 3
await 60 'three targets up' holds 'up == 1' 3
[ "$(started)" = "$since" ] || fail 'a container was restarted'
step 'TLS: done'
