#!/bin/sh
# Type-checks the Rust extension for macOS (aarch64-apple-darwin) on Linux, with CoreAudio's bindings and without a Mac.
#
# Debian's rustc-web, cargo-web and rust-web-src bring the standard library's source, which is checked for the target
# along with the crate: no C compiler, linker or SDK of Apple's is used, so that nothing can be built or run this way.
# MACOS_CHECK_RUST: folder of another cargo and rustc that have rust-src (default: /usr/bin).
set -u
cd "$(dirname "$0")/.." || exit 1

TARGET=aarch64-apple-darwin
RUST=${MACOS_CHECK_RUST:-/usr/bin}

say() { echo "check-macos: $*" >&2; }

has_source() {
    root=$("$RUST/rustc" --print sysroot 2>/dev/null) || return 1
    [ -e "$root/lib/rustlib/src/rust/library/std/Cargo.toml" ]
}

ready() { [ -x "$RUST/cargo" ] && [ -x "$RUST/rustc" ] && has_source; }

install_debian() {
    if ! command -v apt-get >/dev/null; then
        say "no $RUST/cargo with the standard library's source, and no apt-get to install it; on a Mac: cargo check"
        return 1
    fi
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    say "installing rustc-web, cargo-web and rust-web-src"
    packages="rustc-web cargo-web rust-web-src"
    # shellcheck disable=SC2086
    $as_root scripts/apt-install.sh $packages ||
        { $as_root apt-get update -q </dev/null && $as_root scripts/apt-install.sh $packages; }
}

if [ "$(uname -s)" = Darwin ]; then
    exec cargo check --locked -p audio_io --all-targets
fi

ready || install_debian
if ! ready; then
    say "could not install them: macOS NOT checked. Needed: rustc-web, cargo-web, rust-web-src (Debian 12 updates or newer)"
    exit 1
fi

say "$("$RUST/rustc" --version), target $TARGET"

# pyo3 asks no interpreter of the target: abi3 says which one is meant.
export PATH="$RUST:$PATH" RUSTC="$RUST/rustc" RUSTC_BOOTSTRAP=1
export PYO3_NO_PYTHON=1 PYO3_CROSS=1 PYO3_CROSS_PYTHON_VERSION=3.10 PYO3_CROSS_PYTHON_IMPLEMENTATION=CPython
unset RUSTUP_TOOLCHAIN CARGO_BUILD_TARGET RUSTFLAGS
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/macos"

if "$RUST/cargo" check --locked -Zbuild-std=std,panic_abort --target "$TARGET" -p audio_io; then
    say "the extension type-checks for macOS, CoreAudio and Python bindings included; tests are not checked here"
else
    say "the macOS parts do NOT type-check (or a dependency could not be fetched: see above)"
    exit 1
fi
