#!/usr/bin/env bash
# The tests that need no cluster:
#     hack/test.sh [PYTEST-OPTIONS...]
# First tests/unit, a process for each core: none of them asks how long something takes. Then tests/fake and
# tests/runtime, which do, one test after another. REPORTS names a folder for JUnit reports.
set -euo pipefail
cd "$(dirname "$0")/.."
# A worker takes a file at a time, and up to 1.5 GB of memory.
spread=(-n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
status=0
found=5  # pytest's status for "no test was selected"

# part NAME MARKS OPTIONS...: a failure is kept for the end; that none was selected counts only if it holds for all.
part() {
    local name=$1 marks=$2 ended=0
    shift 2
    printf '\n-- tests/%s\n' "${name//-/, tests/}"
    .venv/bin/pytest -m "$marks" ${REPORTS:+"--junitxml=$REPORTS/$name.xml"} "$@" || ended=$?
    [ "$ended" = 5 ] || found=0
    case $ended in
    0 | 5) ;;
    1) status=1 ;;
    *) exit "$ended" ;;  # interrupted, or called wrongly
    esac
}

part unit unit "${spread[@]}" "$@"
part fake-runtime 'fake or runtime' "$@"
[ "$status" != 0 ] || status=$found
exit "$status"
