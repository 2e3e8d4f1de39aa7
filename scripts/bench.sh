#!/bin/sh
# Runs the quick set of benchmarks; results go to benchmarks/results/. Arguments are those of benchmarks/run.py.
set -eu
cd "$(dirname "$0")/.."

exec .venv/bin/python benchmarks/run.py "$@"
