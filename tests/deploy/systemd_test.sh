#!/usr/bin/env bash
# The units of deploy/systemd: known settings only, and hardened (systemd-analyze security says 2.5
# or less). Their programs are those of the build. Exit status 77: systemd-analyze is not here.
set -euo pipefail
command -v systemd-analyze >/dev/null || {
  echo 'skipped: systemd-analyze is not installed (Debian: systemd)'
  exit 77
}
copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT
failed=0
for unit in "$QUERN_SOURCE_DIR"/deploy/systemd/*.service; do
  name=$(basename "$unit")
  copy=$copies/$name
  sed "s#/usr/local/bin/#$QUERN_BIN_DIR/#" "$unit" >"$copy"
  # It warns on standard error with status 0 about a setting that it does not know.
  warnings=$(systemd-analyze verify --man=no "$copy" 2>&1) || failed=1
  if [ -n "$warnings" ]; then
    printf '%s: %s\n' "$name" "$warnings"
    failed=1
  fi
  if ! systemd-analyze security --offline=true --threshold=25 "$copy" >"$copies/security"; then
    grep -v '^✓' "$copies/security"
    failed=1
  fi
  printf '%s: %s\n' "$name" "$(tail -n 1 "$copies/security")"
  # A flag that the program does not have would end it at each start.
  program=$QUERN_BIN_DIR/${name%.service}
  help=$("$program" --help || true)
  for flag in $(sed -n '/^ExecStart=/,/[^\\]$/p' "$copy" | grep -oE -- '--[a-z-]+'); do
    flag=${flag#--}
    grep -q -- "--${flag//-/_} " <<<"$help" || {
      printf '%s: --%s is no flag of %s\n' "$name" "$flag" "$program"
      failed=1
    }
  done
done
exit "$failed"
