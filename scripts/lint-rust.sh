#!/bin/sh
# Formatting and clippy for the Rust extension; a Rust without them (Debian's) says so and passes.
set -eu

if cargo fmt --version >/dev/null 2>&1; then
    cargo fmt --check
else
    echo "cargo fmt is not installed: formatting not checked."
fi
if cargo clippy --version >/dev/null 2>&1; then
    cargo clippy --locked --release --all-targets -- -D warnings
else
    echo "cargo clippy is not installed: Rust lints not checked."
fi
