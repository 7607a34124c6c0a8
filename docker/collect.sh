#!/usr/bin/env bash
# Lays out the root of an image: programs, the shared libraries that they load, a user.
#   docker/collect.sh DIRECTORY PROGRAM...
# Libraries below /opt stay out: they are a layer of their own.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
root=$1
shift
mkdir -p "$root"/{usr/bin,etc,tmp,var/lib/quern,models,data}
chmod 1777 "$root/tmp"
chown 10001:10001 "$root/var/lib/quern"
for program in "$@"; do
  install -s "$program" "$root/usr/bin/"
  # Both "name => /path (0x...)" and the loader's own "/path (0x...)".
  ldd "$program" | grep -oE '/[^ ]+ \(0x' | cut -d' ' -f1
done | sort -u | while read -r library; do
  case "$library" in
    /opt/*) continue ;;
  esac
  install -D "$library" "$root$library"
done
# For `quern chat` at a terminal: what terminals can do, and UTF-8.
mkdir -p "$root/lib" "$root/usr/lib/locale"
cp -r /lib/terminfo "$root/lib/"
cp -r /usr/lib/locale/C.utf8 "$root/usr/lib/locale/"
cat >"$root/etc/passwd" <<<'quern:x:10001:10001::/var/lib/quern:/sbin/nologin'
cat >"$root/etc/group" <<<'quern:x:10001:'
# Names from /etc/hosts first, then from the network's name server.
cat >"$root/etc/nsswitch.conf" <<<'hosts: files dns'
