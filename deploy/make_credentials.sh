#!/usr/bin/env bash
# Makes what deploy/compose.tls.yaml turns on: a private CA, one certificate for the three services and a
# token for each of their clients. Keeps what is there.
#   deploy/make_credentials.sh [DIRECTORY [HOST...]]
# DIRECTORY is deploy/secrets/quern unless given; HOSTs are further names and IP addresses of the
# services.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:-deploy/secrets/quern}
[ $# -eq 0 ] || shift
umask 077
mkdir -p "$directory"
cd "$directory"

if [ ! -f ca.crt ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj '/CN=Quern private CA' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
    -keyout ca.key -out ca.crt 2>/dev/null
fi
if [ ! -f services.crt ]; then
  names=DNS:jobs,DNS:worker,DNS:worker-gpu,DNS:inference,DNS:localhost,IP:127.0.0.1
  for host in "$@"; do
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then names+=,IP:$host; else names+=,DNS:$host; fi
  done
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=quern-services' \
    -keyout services.key -out services.csr 2>/dev/null
  openssl x509 -req -in services.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") \
    -out services.crt 2>/dev/null
  rm services.csr
fi
# As `quern token create` does: 256 random bits, of which the services keep the SHA-256.
for client in admin:admin submitter:submitter worker:worker inference:reader prometheus:reader; do
  name=${client%:*} role=${client#*:}
  [ ! -f "$name.token" ] || continue
  token=quern_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=\n')
  printf '%s' "$token" >"$name.token"
  printf '%s %s sha256:%s\n' "$name" "$role" "$(printf '%s' "$token" | sha256sum | cut -d' ' -f1)" >>tokens
done
echo "ready: $directory holds ca.crt, services.crt, services.key, tokens and a .token file for each client;"
echo "keep ca.key elsewhere. Containers read them as user 10001: chown -R 10001 $directory"
