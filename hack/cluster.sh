#!/usr/bin/env bash
# Runs a command with a Kubernetes cluster:
#     hack/cluster.sh [--inside] [--nodes N] [--fake N] -- COMMAND...
# The cluster is the one that KUBECONFIG names, if that is set. Else, where ../shared/cluster lies beside the
# checkout, it is brought up by that and taken down again, unless one is up already: CI replaces it by a fresh one,
# everyone else uses it and leaves it. --nodes and --fake say what to bring up: real and pretended nodes.
# --inside runs COMMAND in that cluster's own network, so that what it calls at a Service's or pod's address stays there.
# COMMAND finds KUBECONFIG, kubectl and helm, and SERVEWRIGHT_CLUSTER_CONTROL where components can be killed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
tool=$here/../shared/cluster/cluster

inside=
if [ "${1:-}" = --inside ]; then inside=yes; shift; fi
options=()
while [ "$#" -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ "$#" -gt 1 ] || { echo "usage: hack/cluster.sh [--nodes N] [--fake N] -- COMMAND..." >&2; exit 2; }
shift

if [ -n "${KUBECONFIG:-}" ]; then exec "$@"; fi
if [ ! -x "$tool" ]; then
    echo "error: KUBECONFIG is not set; kind makes a cluster: \`kind create cluster --kubeconfig build/kind && export" \
        "KUBECONFIG=\$PWD/build/kind\`, see docs/testing.md" >&2
    exit 1
fi

export SERVEWRIGHT_CLUSTER_CONTROL=$tool
if [ -n "$inside" ] && [[ " ${options[*]} " == *' --nodes 0 '* ]]; then
    # Nobody forwards a Service's address there. Calls fail at once then, as with kube-proxy and no endpoints, and
    # do not fill the kernel's table of neighbours.
    set -- sh -c 'ip route replace unreachable "$0" && exec "$@"' 10.96.0.0/16 "$@"
fi
[ -z "$inside" ] || set -- "$tool" enter -- "$@"
if environment=$("$tool" env 2>/dev/null) && [ -z "${CI:-}" ]; then
    eval "$environment"
    exec "$@"
fi
"$tool" down
trap '"$tool" down' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
environment=$("$tool" up "${options[@]}")
eval "$environment"
"$@"
