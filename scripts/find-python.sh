#!/bin/sh
# Prints the newest Python from 3.10 to 3.14 that can make a virtual environment; says what to install where there is none.
# $PYTHON, when set, is taken instead.
set -u

suits() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    if suits "$PYTHON"; then
        command -v "$PYTHON"
        exit 0
    fi
    echo "PYTHON=$PYTHON is no Python 3.10 to 3.14 with the venv module." >&2
    exit 1
fi

for name in python3.14 python3.13 python3.12 python3.11 python3.10 python3; do
    if command -v "$name" >/dev/null 2>&1 && suits "$name"; then
        command -v "$name"
        exit 0
    fi
done

echo "No Python 3.10 to 3.14 with the venv module was found." >&2
if [ "$(uname)" = Darwin ]; then
    echo "Install one with 'brew install python', or name one: make build PYTHON=/path/to/python3" >&2
else
    echo "Install one (Debian: apt-get install python3 python3-venv), or name one: make build PYTHON=/path/to/python3" >&2
fi
exit 1
