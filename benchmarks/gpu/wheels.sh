#!/usr/bin/env bash
# Fetch what a stock CUDA image of torch may lack, as wheels: bash benchmarks/gpu/wheels.sh [PYTHON_VERSION]
#
# Into .gpu-wheels (ignored by git, under 64 MiB), for a machine with no network, x86-64 Linux and the Python given
# (3.12). torch, numpy and pytest are the image's own; scikit-learn and matplotlib are large and not needed there.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${1:-3.12}

any=(pluggy lazy-loader packaging pydantic annotated-types typing-inspection typing-extensions typer click shellingham
  annotated-doc rich markdown-it-py mdurl pygments ruamel.yaml hypothesis sortedcontainers pytest iniconfig
  backpack-for-pytorch einops unfoldNd einconv)
binary=(pydantic-core h5py safetensors)

rm -rf .gpu-wheels
mkdir .gpu-wheels
fetch() {
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest .gpu-wheels \
    --python-version "$version" --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform manylinux1_x86_64 "$@"
}
fetch pydantic
# pydantic wants one version of its core and no other.
core=$(unzip -p .gpu-wheels/pydantic-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core==\([0-9.]*\).*/\1/p')
for name in "${any[@]}" "${binary[@]/%pydantic-core/pydantic-core==$core}"; do
  fetch "$name" || echo "not there: $name" >&2
done
du -sh .gpu-wheels
