#!/usr/bin/env bash
# Once before the first `docker compose -f deploy/compose.yaml up`: writes deploy/.env, makes a
# password for Grafana's admin and fetches the demo's model into the model root. Keeps what is there.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -f deploy/.env ] || cp deploy/.env.example deploy/.env
password=deploy/secrets/grafana_admin_password
if [ ! -f "$password" ]; then
  # The folder keeps other users out; the file is read by Grafana's own user inside the container.
  mkdir -p deploy/secrets
  chmod 700 deploy/secrets
  head -c 18 /dev/urandom | base64 >"$password"
  chmod 644 "$password"
fi
deploy/fetch_model.sh >/dev/null
echo "ready: docker compose -f deploy/compose.yaml up --build   (Grafana: admin, password in $password)"
