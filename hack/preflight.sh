#!/usr/bin/env bash
# Names what the machine lacks for the build, with the Debian package that brings it; installs nothing.
set -euo pipefail

python=${PYTHON:-python3}
missing() { echo "error: $1; on Debian: apt-get install $2" >&2; exit 1; }

command -v "$python" >/dev/null || missing "$python is not there" "python3 python3-venv python3-dev"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    missing "Python 3.11 or newer is needed, $python is $("$python" -V); try make PYTHON=python3.11" "python3.11-venv python3.11-dev"
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing "$python has no venv" "python3-venv"
# Kernels are built for x86-64 Linux alone; setup.py says the same to those who call pip themselves.
[ "$(uname -sm)" = "Linux x86_64" ] || exit 0
compiler=${CXX:-g++}
command -v "${compiler%% *}" >/dev/null ||
    missing "the C++ compiler $compiler is not there (CXX=... names another)" "g++"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing "Python.h of $python is not there" "python3-dev"
