#!/usr/bin/env bash
# Ringfence's one entry: finds (or installs) a Rust compiler for this machine, builds xtask, and hands over to it.
# Everything else, the rest of the set-up included, is in xtask/. Try: ./run-qemu.sh --help
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
[ -d "${CARGO_HOME:-${HOME:-}/.cargo}/bin" ] && PATH="$PATH:${CARGO_HOME:-${HOME:-}/.cargo}/bin"
target=${CARGO_TARGET_DIR:-$root/target}
[[ $target = /* ]] || target=$PWD/$target
xtask=$target/debug/xtask

# What building xtask itself takes. Only looked at closely when there is no xtask yet.
set_up_compiler() {
    local packages=()
    local minor
    minor=$(cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p') || true
    [ "${minor:-0}" -ge 90 ] || packages+=(rustc-web cargo-web)
    command -v cc >/dev/null || packages+=(gcc libc6-dev)
    [ ${#packages[@]} -eq 0 ] && return
    local install="apt-get install -y --no-install-recommends ${packages[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "run-qemu.sh: needs Rust 1.91 or newer and a C compiler: install rustup (https://rustup.rs) and gcc" >&2
        exit 1
    elif [ "$(id -u)" -ne 0 ]; then
        echo "run-qemu.sh: a compiler is missing and only root may install it. Run: sudo apt-get update && sudo $install" >&2
        exit 1
    fi
    echo "run-qemu.sh: installing ${packages[*]}: the compiler that builds Ringfence" >&2
    apt-get update -q >&2 || true
    DEBIAN_FRONTEND=noninteractive $install >&2
    hash -r
}

# Cargo calls this to boot what it has built in kernel/, in an environment that names the kernel's compiler. An
# xtask that is there does: that compiler would build it, and all that it needs, once more.
if [ "${1:-}" = boot ]; then
    unset RUSTC RUSTC_BOOTSTRAP RUSTUP_TOOLCHAIN
    xtask=${RINGFENCE_XTASK:-$xtask}
    [ -x "$xtask" ] && exec "$xtask" "$@"
fi

quiet=--quiet
if [ ! -x "$xtask" ]; then
    set_up_compiler
    quiet=
fi
(cd "$root" && cargo build $quiet --package xtask --target-dir "$target")
exec "$xtask" "$@"
