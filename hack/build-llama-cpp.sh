#!/bin/sh
# Builds llama-bench and llama-server, which `make bench` measures this engine against.
#
#   hack/build-llama-cpp.sh [PREFIX]     (default: bench/out/llama.cpp)
#
# The sources are those that the llama-cpp-python source distribution carries, fetched by pip with
# the index settings that you have. Needs a C++ compiler; takes about 10 CPU minutes and 600 MB.
# Afterwards put PREFIX/bin on the PATH, or leave the default, where bench/run.py looks as well.
set -eu

version=${LLAMA_CPP_PYTHON_VERSION:-0.3.36}
root=$(cd "$(dirname "$0")/.." && pwd)
prefix=${1:-$root/bench/out/llama.cpp}
jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
work=$prefix/work
mkdir -p "$work" "$prefix/bin"

# pip asks the sdist's build back end for metadata before it keeps the file, so the back end has to
# be there; its own environment spares the project's.
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scikit-build-core cmake ninja
"$work/venv/bin/pip" download --quiet --no-deps --no-build-isolation --dest "$work" \
    --no-binary llama-cpp-python "llama-cpp-python==$version"
tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"

# GCC before 13 takes a tile configuration for eight bytes long and drops the stores of the rest: what is built with AMX
# then dies of ldtilecfg. A barrier keeps them.
sed -i 's/_tile_loadconfig(&tc);/__asm__ volatile("" : : "r"(\&tc) : "memory"); &/' \
    "$work/llama_cpp_python-$version/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"

# GGML_NATIVE: every instruction set of this CPU. The switched-off parts would fetch or need more
# (TLS, tests, a web UI) and play no part in what is measured.
PATH=$work/venv/bin:$PATH
cmake -S "$work/llama_cpp_python-$version/vendor/llama.cpp" -B "$work/build" -G Ninja \
    -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF \
    -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
nice cmake --build "$work/build" --parallel "$jobs" --target llama-bench llama-server
cp "$work/build/bin/llama-bench" "$work/build/bin/llama-server" "$prefix/bin/"
rm -rf "$work"
echo "built: $prefix/bin/llama-bench $prefix/bin/llama-server"
