#!/usr/bin/env bash
# Everything that only a GPU can show, in at most eight minutes: bash benchmarks/gpu.sh [--cpu] [--only PART ...]
#
# Prints one table; writes figures.json and log.txt into $OUT (gpu-figures). Exits with 0 if every part passed. --cpu
# runs what needs no GPU, with small sizes, to try the script itself. It needs a python3 with torch, and nothing from
# the network: benchmarks/gpu/wheels.sh fetches beforehand what such a Python may lack.
set -euo pipefail
cd "$(dirname "$0")/.."

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$site:$PWD/core:$PWD/plugins:$PWD/cli:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
needed="pluggy, lazy_loader, pydantic, typer, rich, h5py, ruamel.yaml, safetensors, pytest, hypothesis"
if ! python3 -c "import $needed" 2>/dev/null; then
  python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" .gpu-wheels/*.whl
fi
python3 benchmarks/gpu/known.py "$site" # plugins are found through an installed distribution's entry points
python3 benchmarks/gpu/run.py --out "${OUT:-gpu-figures}" "$@"
