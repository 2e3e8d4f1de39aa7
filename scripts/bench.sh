#!/bin/sh
# Runs every benchmark in benchmarks/ that takes --json, one after the other; results go to benchmarks/results/.
set -eu
cd "$(dirname "$0")/.."

mkdir -p benchmarks/results
failed=""
for file in benchmarks/*.py; do
    name=$(basename "$file" .py)
    grep -q -- '"--json"' "$file" || continue
    echo "== $name"
    .venv/bin/python "$file" --json "benchmarks/results/$name.json" || failed="$failed $name"
done
if [ -n "$failed" ]; then
    echo "Failed:$failed" >&2
    exit 1
fi
