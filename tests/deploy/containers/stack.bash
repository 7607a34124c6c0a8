# shellcheck shell=bash
# What run.sh and tls.sh share: a stack under podman-compose, from images that run.sh has built. They
# call `stack PROJECT FILE...`, with the Compose files, from the root of the repository, before
# anything else but `fail` and `step`; $keep leaves the stack running at the end.

fail() { echo "containers: $*" >&2; exit 1; }
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

# Polls a command until it succeeds.
await() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$limit" ] || fail "$what: not within its limit"
    sleep 0.2
  done
}

stack() {
  project=$1
  shift
  compose=(.cache/compose/bin/podman-compose -p "$project")
  local file
  for file in "$@"; do compose+=(-f "$file"); done
  work=$(mktemp -d)
  trap cleanup EXIT
  mkdir -p "$work/data" "$work/secrets"
  echo unused >"$work/secrets/grafana"
  cat README.md docs/*.md >"$work/data/calibration.txt"
  model=$(deploy/fetch_model.sh)
  export QUERN_MODEL_ROOT=$(dirname "$model") QUERN_DATA_ROOT=$work/data
  export QUERN_GRAFANA_PASSWORD_FILE=$work/secrets/grafana
  export QUERN_PROMETHEUS_IMAGE=localhost/quern-test-prometheus
  export QUERN_JOBS_PORT=17400 QUERN_INFERENCE_PORT=17420 QUERN_INFERENCE_HTTP_PORT=17422
  export QUERN_PROMETHEUS_PORT=19090
}
cleanup() {
  code=$?
  [ "$code" = 0 ] || "${compose[@]}" logs jobs worker inference prometheus 2>&1 | tail -60 || true
  if [ -n "$keep" ]; then
    echo "left running, with its files in $work; stop it with: ${compose[*]} down -v"
    return
  fi
  "${compose[@]}" down -v -t 5 >/dev/null 2>&1 || true
  rm -rf "$work"
}

container() { echo "${project}_$1_1"; }
healthy() { podman healthcheck run "$(container "$1")" >/dev/null 2>&1; }
start_stack() {
  # Grafana's image comes from a registry, which need not be reachable here.
  "${compose[@]}" up -d jobs worker inference prometheus
  local service
  for service in jobs worker inference; do await 60 "$service healthy" healthy "$service"; done
}
# The client as a container of the stack; as a program on the host it is `quern`, which each script
# has its own of.
in_stack() { "${compose[@]}" --profile cli run --rm -T cli "$@"; }

field() { python3 -c 'import json,sys; print(eval("d" + sys.argv[1], {"d": json.load(sys.stdin)}))' "$1"; }
job_field() { quern --json jobs get "$1" | field "$2"; }
ended() { case "$(job_field "$1" '["state"]')" in SUCCEEDED | FAILED | CANCELLED) ;; *) false ;; esac; }
succeeded() {
  await 900 "the end of $1" ended "$1"
  [ "$(job_field "$1" '["state"]')" = SUCCEEDED ] || fail "$1: $(quern --json jobs get "$1")"
}
artifact_of() {
  succeeded "$1"
  job_field "$1" '["artifact"]'
}

query() { # expression -> number of series for which it holds
  python3 - "$QUERN_PROMETHEUS_PORT" "$1" <<'PYTHON'
import json, sys, urllib.parse, urllib.request
url = f'http://127.0.0.1:{sys.argv[1]}/api/v1/query?' + urllib.parse.urlencode({'query': sys.argv[2]})
print(len(json.load(urllib.request.urlopen(url, timeout=10))['data']['result']))
PYTHON
}
holds() { [ "$(query "$1")" = "$2" ]; }
