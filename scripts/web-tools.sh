#!/bin/sh
# Fetches what builds the page and tests it in a browser. What can't be had is named, and its tests are skipped.
set -u
cd "$(dirname "$0")/../web" || exit 1

has() { command -v "$1" >/dev/null 2>&1; }

if ! has npm; then
    echo "No npm: the page isn't built or tested. Install Node.js 20 or newer." >&2
    exit 0
fi
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    npm ci --no-audit --no-fund --loglevel=error </dev/null || echo "npm ci failed: the page isn't tested." >&2
    touch node_modules/.package-lock.json 2>/dev/null
fi
if [ "$(uname)" = Linux ] && ! has chromium && ! has google-chrome && has apt-get; then
    if [ "$(id -u)" = 0 ]; then root=""; elif has sudo; then root="sudo -n"; else root="false"; fi
    echo "Installing chromium"
    { $root apt-get update -q && $root ../scripts/apt-install.sh chromium; } </dev/null >/dev/null 2>&1 ||
        echo "chromium can't be installed: the page isn't tested in a browser." >&2
fi
exit 0
