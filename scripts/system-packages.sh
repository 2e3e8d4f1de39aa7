#!/bin/sh
# Installs what the build, the demo and the tests need from the system and can't find.
# On Debian and its children by apt-get (with sudo where not root); elsewhere it says what to install and stops.
set -u

RUST_NEEDED=1.88
missing=""

need() { # need PACKAGE CHECK...: PACKAGE is missing where the check fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

has() { command -v "$1"; }

has_library() { ldconfig -p 2>/dev/null | grep -q "$1" || /sbin/ldconfig -p 2>/dev/null | grep -q "$1"; }

recent_rust() {
    found=$( (cargo --version && rustc --version) 2>/dev/null | awk '{print $2}' | sort -V | head -1)
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$RUST_NEEDED" "$found" | sort -V | head -1)" = "$RUST_NEEDED" ]
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif has sudo >/dev/null; then
        sudo "$@"
    else
        echo "Not root and there is no sudo; run this as root: $*" >&2
        return 1
    fi
}

apt_install() { as_root "$(dirname "$0")/apt-install.sh" "$@"; }

say_rust() {
    echo "Rust $RUST_NEEDED or newer is needed (cargo and rustc). Install it from https://rustup.rs, then run make again." >&2
}

on_macos() {
    need "xcode-select --install;" has cc
    recent_rust || missing="$missing brew install rust;"
    need "brew install espeak-ng;" has espeak-ng
    if [ -n "$missing" ]; then
        echo "Missing on this Mac. Run:$missing then make again." >&2
        exit 1
    fi
}

on_linux() {
    # A C++ compiler also at run time: MLX's CPU backend compiles its fused kernels with it.
    need "g++" has c++
    need "libc6-dev" test -e /usr/include/stdio.h
    need "pkg-config" has pkg-config
    need "libasound2-dev" pkg-config --exists alsa
    need "libopenblas0" has_library libopenblas.so.0
    need "espeak-ng" has espeak-ng
    need "pulseaudio" has pulseaudio
    need "pulseaudio-utils" has pactl
    "$(dirname "$0")/find-python.sh" >/dev/null 2>&1 || missing="$missing python3 python3-venv"

    if [ -z "$missing" ] && recent_rust; then
        return 0
    fi
    if ! has apt-get >/dev/null; then
        [ -z "$missing" ] || echo "Install what these Debian packages hold, then run make again:$missing" >&2
        recent_rust || say_rust
        exit 1
    fi

    as_root apt-get update -q </dev/null || echo "apt-get update failed; trying with the package lists that are here." >&2
    if [ -n "$missing" ]; then
        echo "Installing:$missing"
        # shellcheck disable=SC2086
        apt_install $missing || exit 1
    fi
    if ! recent_rust; then
        # Debian keeps a Rust for building browsers, newer than the release's own.
        apt_install cargo-web rustc-web || apt_install cargo rustc || true
        recent_rust || { say_rust; exit 1; }
    fi
}

case "$(uname)" in
    Darwin) on_macos ;;
    Linux) on_linux ;;
    *) echo "Only macOS and Linux are supported, not $(uname)." >&2; exit 1 ;;
esac
