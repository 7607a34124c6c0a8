#!/usr/bin/env bash
# Installs what Quern needs on Debian 12: packages (deploy/packages.txt) and LibTorch.
#   deploy/install.sh [--tests]     --tests adds what only the tests need
# Needs root or sudo only when a package is missing. A second run does nothing, within a second.
set -euo pipefail
cd "$(dirname "$0")/.."

groups='build'
case "${1:-}" in
  '') ;;
  --tests) groups='build|test' ;;
  *) sed -n '2,4p' "$0" >&2; exit 2 ;;
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

# LibTorch is inside PyPI's torch wheel; its CPU half also loads two small CUDA libraries.
# name==version sha256 files-to-unpack...
wheels=(
  'torch==2.11.0 7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a torch/include/* torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp.so.1'
  'nvidia-cuda-cupti==13.0.85 4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8 nvidia/cu13/lib/*'
  'nvidia-cuda-runtime==13.0.96 7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548 nvidia/cu13/lib/*'
)

install_libtorch() {
  local target=.cache/libtorch stamp
  stamp=$(printf '%s\n' "${wheels[@]}" | sha256sum | cut -d' ' -f1)
  [ "$(cat "$target/stamp" 2>/dev/null)" != "$stamp" ] || return 0
  say 'fetching LibTorch 2.11.0 (530 MB)'
  rm -rf "$target" "$target.new"
  mkdir -p "$target.new"
  local wheel spec sum files file
  for wheel in "${wheels[@]}"; do
    read -r spec sum files <<<"$wheel"
    deploy/fetch_wheel.sh "$spec" "$sum" "$target.new"
    file=$(ls "$target.new"/*.whl)
    set -f
    # shellcheck disable=SC2086
    unzip -q -o "$file" $files -d "$target.new"
    set +f
    rm "$file"
  done
  echo "$stamp" >"$target.new/stamp"
  mv "$target.new" "$target"
}

# What the README's Python example imports.
install_python() {
  local target=.cache/python packages='grpcio==1.66.2 grpcio-tools==1.66.2'
  [ "$(cat "$target/stamp" 2>/dev/null)" != "$packages" ] || return 0
  rm -rf "$target"
  python3 -m venv "$target"
  # shellcheck disable=SC2086
  "$target/bin/pip" install -q --disable-pip-version-check $packages
  echo "$packages" >"$target/stamp"
}

install_packages
install_libtorch
[ "$groups" = build ] || install_python
