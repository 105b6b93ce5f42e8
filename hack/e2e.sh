#!/usr/bin/env bash
# The tests that need Kubernetes, in tests/api and tests/node, or those of one folder alone:
#     hack/e2e.sh [api|node] [PYTEST-OPTIONS...]
# tests/api takes KUBEBUILDER_ASSETS, a folder with etcd and kube-apiserver. Where it is not set and ../shared/cluster
# lies beside the checkout, the newest and the oldest supported version are tested, one after another. tests/node takes
# a cluster from hack/cluster.sh. One that KUBECONFIG names has the images already; any other gets those of
# hack/images.sh, under the names that the chart uses. REPORTS names a folder for JUnit reports.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=../shared/cluster/cluster
versions=(1.37.2 1.34.4)
case ${1:-} in
api | node) tiers=$1; shift ;;
*) tiers='api node' ;;
esac
arguments=("$@")
status=0

# tier KIND NAME COMMAND...: runs tests/KIND by `COMMAND... pytest`; a failure is kept for the end.
tier() {
    local kind=$1 name=$2
    shift 2
    printf '\n-- tests/%s: %s\n' "$kind" "$name"
    "$@" .venv/bin/pytest "tests/$kind" ${REPORTS:+"--junitxml=$REPORTS/$name.xml"} "${arguments[@]}" || status=1
}

if [[ $tiers == *api* ]]; then
    if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
        tier api api env
    elif [ -x "$tool" ]; then
        for version in "${versions[@]}"; do
            assets=$("$tool" assets --kubernetes "$version")
            tier api "api-$version" env "${assets#export }"
        done
    else
        echo "error: KUBEBUILDER_ASSETS is not set; \`setup-envtest use -p path\` prints such a folder, see docs/testing.md" >&2
        status=1
    fi
fi
if [[ $tiers == *node* ]]; then
    images=()
    if [ -z "${KUBECONFIG:-}" ]; then
        TAG=$(sed -n 's/^appVersion: //p' charts/servewright/Chart.yaml)
        export TAG
        images=(bash -c 'hack/images.sh && exec "$@"' --)
    fi
    tier node node hack/cluster.sh --nodes 2 -- "${images[@]}"
fi
exit "$status"
