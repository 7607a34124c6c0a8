#!/usr/bin/env bash
# Makes docker.io/library/debian:bookworm-slim for podman and buildah where no registry can be
# reached: debootstrap from this machine's archive, with this machine's way to the archives
# (sources, proxies, certificates).
set -euo pipefail
name=docker.io/library/debian:bookworm-slim
podman image exists "$name" && exit 0
podman pull -q "$name" >/dev/null 2>&1 && exit 0
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$( { cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
  sed -nE 's/^(deb|URIs:) +(\[[^]]*\] +)?(https?:[^ ]+).*/\3/p' | grep -v security | sed -n 1p)
debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -5 "$root.log" >&2; exit 1; }
rm -f "$root.log" "$root/etc/apt/sources.list" "$root"/var/cache/apt/archives/*.deb
for path in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/apt.conf.d /etc/pip.conf \
  /usr/local/share/ca-certificates /etc/ssl/certs/ca-certificates.crt; do
  [ ! -e "$path" ] || cp -aL --no-target-directory "$path" "$root$path"
done
tar -C "$root" -c . | podman import -q - "$name" >/dev/null
