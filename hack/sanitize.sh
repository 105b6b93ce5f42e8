#!/bin/sh
# Build csrc/ with AddressSanitizer and UndefinedBehaviorSanitizer into a temporary folder and run
# the kernel, loader and engine tests on that build. Arguments go to pytest:
#
#   hack/sanitize.sh                    all of them
#   hack/sanitize.sh -k rejections      some
#
# PYTHON and CXX choose the interpreter and the compiler. Leaks are not looked for: Python keeps
# memory until it ends. The build in the working tree is not touched.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
cxx=${CXX:-g++}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$root"
SERVEWRIGHT_SANITIZE=address,undefined "$python" setup.py --quiet build_ext \
    --build-temp "$work/objects" --build-lib "$work/lib"
# The packages beside it, without the working tree's own build.
mkdir "$work/packages"
cp -R operator/servewright_api runtime/servewright_runtime "$work/packages/"
rm -f "$work"/packages/servewright_runtime/_native*.so
cp "$work"/lib/servewright_runtime/_native*.so "$work/packages/servewright_runtime/"

preload=$("$cxx" -print-file-name=libasan.so):$("$cxx" -print-file-name=libstdc++.so)
export PYTHONPATH="$work/packages"
# A test asks for more memory than there is, and expects to be told.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
LD_PRELOAD=$preload "$python" -c "
import servewright_runtime._native as native
assert native.__file__.startswith('$work'), native.__file__"

measured=tests/unit/models/test_registry.py::test_loading_takes_little_more_memory_than_the_weights
tests=
for tests_of in native models engine; do
    [ -d "tests/unit/$tests_of" ] && tests="$tests tests/unit/$tests_of"
done
# One sanitised process is ten times slower: no limit on a test's time but a large one. And it keeps
# freed memory to see who uses it still, so how much a load takes is measured without.
# shellcheck disable=SC2086
LD_PRELOAD=$preload "$python" -m pytest -q -p no:cacheprovider --timeout 1200 \
    -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $tests \
    --deselect "$measured" "$@"
