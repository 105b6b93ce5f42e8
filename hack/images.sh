#!/usr/bin/env bash
# Builds the images of this working tree: localhost/servewright-operator:VERSION and -runtime:VERSION,
# the names that the chart uses by default, and -runtime-cuda:VERSION if it is named.
#   hack/images.sh [operator|runtime|runtime-cuda ...]
# What pip installs is downloaded once for each requirements.lock into build/wheels and given to the
# build, which then needs no network; the kernels are compiled here. Environment:
#   REGISTRY, TAG    of the names (localhost, the version)
#   BASE             image to build from, as in the Dockerfiles
#   IMAGE_BUILD      command that builds: called with CONTEXT NAME -f FILE and options of `docker build`
#   PYTHON           of the same version as the base image's (.venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/.."

images=("$@")
[ ${#images[@]} -gt 0 ] || images=(operator runtime)
python=${PYTHON:-.venv/bin/python}
base=${BASE:-docker.io/library/python:3.11-slim-bookworm}
cluster=../shared/cluster/cluster

if [[ $base == *python:3.* && $base != *python:"$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"* ]]; then
    echo "hack/images.sh: $base has another Python than $python, so its wheels would not fit; set PYTHON or BASE." >&2
    exit 1
fi

build() {  # NAME FILE OPTION...
    local name=$1 file=$2
    shift 2
    if [ -n "${IMAGE_BUILD:-}" ]; then
        $IMAGE_BUILD . "$name" -f "$file" "$@"
    elif docker info >/dev/null 2>&1; then
        docker build -t "$name" -f "$file" "$@" .
    elif command -v podman >/dev/null; then
        podman build -t "$name" -f "$file" "$@" .
    elif [ -x "$cluster" ]; then  # builds with buildah and brings the image to the cluster's nodes
        buildah inspect --type image "$base" >/dev/null 2>&1 || "$cluster" base-image "$base"
        "$cluster" build . "$name" -f "$file" "$@"
    elif command -v buildah >/dev/null; then
        buildah build --layers -t "$name" -f "$file" "$@" .
    else
        echo 'hack/images.sh: neither docker nor podman nor buildah can be used; start or install one, or set IMAGE_BUILD.' >&2
        exit 1
    fi
}

lock=$(cat requirements.lock pyproject.toml hack/requirements.py | sha256sum | cut -c1-16)

# fill FOLDER REQUIREMENT...: what the images install, downloaded once, and our own wheel of this tree.
fill() {
    local folder=$1
    shift
    if [ ! -e "$folder/.whole" ]; then
        mkdir -p "$folder"
        "$python" hack/requirements.py runtime,reference,operator >"$folder/requirements.txt"
        "$python" -m pip download -q --dest "$folder" -c requirements.lock \
            -r "$folder/requirements.txt" pip setuptools wheel pybind11 "$@"
        touch "$folder/.whole"
    fi
    # setuptools would pack what an earlier build left here, modules that are no more included.
    rm -rf build/lib.* build/bdist.* "$folder"/servewright-*.whl
    "$python" -m pip wheel -q --no-build-isolation --no-deps --wheel-dir "$folder" .
}

version=$("$python" -c 'from servewright_api import __version__; print(__version__)')
commit=$(git rev-parse HEAD)$(git diff --quiet HEAD -- operator runtime csrc || echo -dirty)
for image in "${images[@]}"; do
    wheels=$PWD/build/wheels/$lock
    options=()
    if [ "$image" = runtime-cuda ]; then
        wheels+=-cuda
        options=(--build-arg CUDA=1)
        # PyPI's torch, which has CUDA: === takes none that a CPU's index marks as 2.13.0+cpu.
        SERVEWRIGHT_CUDA=1 fill "$wheels" "torch===$(sed -n 's/^torch==//p' requirements.lock)"
    else
        fill "$wheels"
    fi
    build "${REGISTRY:-localhost}/servewright-$image:${TAG:-$version}" "${image%-cuda}/Dockerfile" \
        --build-context "wheels=$wheels" --build-arg "BASE=$base" "${options[@]}" \
        --build-arg "VERSION=$version" --build-arg "COMMIT=$commit"
done
