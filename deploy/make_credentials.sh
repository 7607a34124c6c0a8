#!/usr/bin/env bash
# Makes what deploy/compose.tls.yaml turns on: a private CA, one certificate for the services and a token
# for each of their clients. Keeps what is there.
#   deploy/make_credentials.sh [--renew] [DIRECTORY [HOST...]]
#     --renew   makes the certificate and the tokens anew, while the services run; the tokens that were
#               there stay good for an hour
# DIRECTORY is deploy/secrets/quern unless given; HOSTs are further names and IP addresses of the
# services. Needs root or sudo once, to let the containers' group read what is made.
set -euo pipefail
case "${1:-}" in
  --renew) renew=1; shift ;;
  -*) sed -n '2,8p' "$0" >&2; exit 2 ;;
  *) renew= ;;
esac
if [ $# -gt 0 ]; then
  directory=$1
  shift
else
  directory=$(dirname "$0")/secrets/quern
fi
# The owner writes and the containers' group, which new files inherit, reads.
umask 027
mkdir -p "$directory"
cd "$directory"
if [ "$(stat -c %g .)" != 10001 ]; then
  sudo=
  [ "$(id -u)" = 0 ] || sudo=sudo
  $sudo chgrp -R 10001 .
  $sudo chmod g+s .
fi
mkdir -p services prometheus clients

if [ ! -f ca.crt ]; then
  (umask 077 && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj '/CN=Quern private CA' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
    -keyout ca.key -out ca.crt 2>/dev/null)
  chmod 640 ca.crt
fi
for place in services prometheus clients; do cp ca.crt "$place"; done

# What the certificate says; a renewal without HOSTs keeps its names.
if [ ! -f services.ext ] || [ $# -gt 0 ]; then
  names=DNS:jobs,DNS:worker,DNS:worker-gpu,DNS:inference,DNS:localhost,IP:127.0.0.1
  for host in "$@"; do
    if [[ $host =~ ^[0-9.]+$ || $host == *:* ]]; then names+=,IP:$host; else names+=,DNS:$host; fi
  done
  cat >services.ext <<EXTENSIONS
subjectAltName=$names
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid:always
EXTENSIONS
fi
if [ ! -e services/tls ] || [ -n "$renew" ]; then
  [ -f ca.key ] || { echo "make_credentials: a certificate takes $PWD/ca.key" >&2; exit 1; }
  # Key and certificate change at once: `tls` is a link to their directory.
  pair=services/tls.$(date +%s%N)
  mkdir "$pair"
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=quern-services' \
    -keyout "$pair/tls.key" -out services.csr 2>/dev/null
  openssl x509 -req -in services.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 \
    -extfile services.ext -out "$pair/tls.crt" 2>/dev/null
  rm services.csr
  chmod 640 "$pair"/*
  old=$(readlink services/tls || true)
  ln -sfn "$(basename "$pair")" services/tls.new
  mv -T services/tls.new services/tls
  [ -z "$old" ] || rm -r "services/$old"
fi

# As `quern token create` does: 256 random bits, of which the services keep the SHA-256.
touch services/tokens
cp services/tokens tokens.new
fresh=()
while read -r name role place; do
  file=$place/$name.token
  [ ! -f "$file" ] || [ -n "$renew" ] || continue
  awk -v name="$name" -v now="$(date -u +%FT%TZ)" -v later="$(date -u -d '1 hour' +%FT%TZ)" '
    $1 == name && NF == 4 && substr($4, 9) < now { next }
    $1 == name && NF == 3 { $0 = $0 " expires=" later }
    { print }' tokens.new >tokens.kept
  token=quern_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=\n')
  hash=$(printf '%s' "$token" | sha256sum | cut -d' ' -f1)
  echo "$name $role sha256:$hash" >>tokens.kept
  mv tokens.kept tokens.new
  printf '%s' "$token" >"$file.new"
  fresh+=("$file")
done <<'CLIENTS'
admin admin clients
submitter submitter clients
worker worker services
inference reader services
prometheus reader prometheus
CLIENTS
mv tokens.new services/tokens
# The services know the new tokens within two seconds; only then do clients show them.
[ -z "$renew" ] || sleep 3
for file in "${fresh[@]}"; do mv "$file.new" "$file"; done

echo "ready: in $directory, services/ and prometheus/ are for the containers, ca.crt and clients/ for who"
echo "talks to them. Keep ca.key elsewhere; only making a certificate takes it."
