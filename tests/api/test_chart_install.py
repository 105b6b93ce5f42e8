"""Both charts on a real API server: what install, upgrade, rollback and uninstall leave.

Nothing runs here (no nodes); the node tier proves that the installed operator works.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import apiserver, helm
from support.apiserver import ApiServer
from support.helm import CHART, CRDS, documents, of_kind, template
from support.pod_monitors import POD_MONITORS
from support.tree import ROOT
from support.waiting import eventually

RELEASE = ("servewright", "--namespace=servewright")
CRD = "customresourcedefinition/modelservices.servewright.io"
SERVICE_ACCOUNT = "--as=system:serviceaccount:servewright:servewright"
NAMED = "--set=watchNamespaces={team-a,team-b}"
EVERYTHING = ROOT / "tests/golden/chart/everything/values.yaml"

pytestmark = pytest.mark.skipif(helm.program() is None, reason=helm.HOW_TO_GET_IT)


@pytest.fixture
def bare() -> Iterator[ApiServer]:
    """An API server that has never heard of us; never the cluster that is there already."""
    with apiserver.api_server(own=True) as server:
        yield server


@pytest.fixture(scope="module")
def installed() -> Iterator[ApiServer]:
    """Both charts are installed, for tests that change nothing."""
    with apiserver.api_server(own=True) as server:
        install_crds(server)
        install(server)
        yield server


def install(server: ApiServer, *words: str | Path, chart: Path = CHART) -> str:
    """`helm upgrade --install`, as the README tells, of the operator."""
    return helm.helm(
        "upgrade",
        "--install",
        *RELEASE,
        chart,
        "--create-namespace",
        *words,
        kubeconfig=server.kubeconfig,
    )


def install_crds(server: ApiServer, chart: Path = CRDS) -> None:
    helm.helm("upgrade", "--install", "servewright-crds", chart, kubeconfig=server.kubeconfig)
    server.kubectl("wait", CRD, "--for=condition=Established", "--timeout=30s")


def seen(server: ApiServer, what: str, namespace: str = "servewright") -> dict[str, Any]:
    """An object as the API server has it."""
    text = server.kubectl("get", what, f"--namespace={namespace}", "--output=json")
    found: dict[str, Any] = json.loads(text)
    return found


def is_there(server: ApiServer, what: str) -> bool:
    return server.run_kubectl("get", what, "--namespace=servewright").returncode == 0


def may(server: ApiServer, verb: str, resource: str, namespace: str, part: str = "") -> bool:
    """Whether the operator's ServiceAccount may. resource: may be TYPE/NAME; part: subresource."""
    where = (f"--namespace={namespace}", f"--subresource={part}", SERVICE_ACCOUNT)
    asked = server.run_kubectl("auth", "can-i", verb, resource, *where)
    return asked.stdout.strip() == "yes"


def serve_something(server: ApiServer) -> dict[str, Any]:
    """The notes' ModelService."""
    server.kubectl("apply", f"--filename={ROOT / 'examples/01-smollm2.yaml'}")
    return seen(server, "modelservice/smollm2", "default")


def test_install_upgrade_rollback_and_uninstall_keep_what_people_own(bare: ApiServer) -> None:
    install_crds(bare)
    notes = install(bare)
    assert "kubectl apply -n default -f - <<'EOF'" in notes
    owned = serve_something(bare)
    first = seen(bare, "deployment/servewright")["spec"]

    install(bare, "--set=logLevel=debug")
    assert seen(bare, "deployment/servewright")["spec"]["template"] != first["template"]
    helm.helm("rollback", *RELEASE, "1", kubeconfig=bare.kubeconfig)
    assert seen(bare, "deployment/servewright")["spec"] == first

    helm.helm("uninstall", *RELEASE, kubeconfig=bare.kubeconfig)
    for gone in (
        "deployment/servewright",
        "serviceaccount/servewright",
        "clusterrole/servewright-operator",
        "clusterrolebinding/servewright-operator",
        "clusterrole/servewright-edit",
        "role/servewright-operator-lease",
    ):
        assert not is_there(bare, gone), gone
    helm.helm("uninstall", "servewright-crds", kubeconfig=bare.kubeconfig)
    assert is_there(bare, CRD)

    install_crds(bare)  # finds what it kept
    install(bare)
    # Nothing of all this touched the ModelService.
    assert seen(bare, "modelservice/smollm2", "default") == owned


def test_the_notes_first_command_works(bare: ApiServer) -> None:
    install_crds(bare)
    notes = install(bare)
    command = notes[notes.index("kubectl apply") :]
    manifest = command.split("<<'EOF'\n", 1)[1].split("EOF\n", 1)[0]
    bare.kubectl("apply", "--namespace=default", "--filename=-", stdin=manifest)


def test_upgrade_from_the_chart_of_an_earlier_commit(bare: ApiServer, tmp_path: Path) -> None:
    earlier = charts_before(tmp_path)
    install_crds(bare, earlier / CRDS.name)
    install(bare, chart=earlier / CHART.name)
    owned = serve_something(bare)
    selector = seen(bare, "deployment/servewright")["spec"]["selector"]

    install_crds(bare)
    install(bare)
    assert seen(bare, "deployment/servewright")["spec"]["selector"] == selector
    helm.helm("rollback", *RELEASE, "1", kubeconfig=bare.kubeconfig)
    assert seen(bare, "modelservice/smollm2", "default")["spec"] == owned["spec"]


def charts_before(folder: Path) -> Path:
    """Both charts as of the newest commit in which they were not what they are now."""
    paths = [str(path.relative_to(ROOT)) for path in (CHART, CRDS)]
    commits = git("log", "--format=%H", "--", *paths).decode().split()
    for commit in commits:
        kept = [path for path in paths if git("ls-tree", commit, "--", path)]
        if kept == paths and git("diff", "--name-only", commit, "--", *paths):
            archive = io.BytesIO(git("archive", commit, "--", *paths))
            with tarfile.open(fileobj=archive) as files:
                files.extractall(folder, filter="data")
            return folder / "charts"
    pytest.skip("needs a history in which the charts differ; this clone is shallow")


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


def test_in_named_namespaces_the_operator_may_nothing_elsewhere(bare: ApiServer) -> None:
    install_crds(bare)
    bare.kubectl("create", "namespace", "team-a")
    install(bare, "--set=watchNamespaces={team-a}")
    assert may(bare, "patch", "deployments.apps", "team-a")
    assert may(bare, "get", "secrets", "team-a")
    assert not may(bare, "list", "secrets", "team-a")
    assert not may(bare, "watch", "secrets", "team-a")
    assert may(bare, "get", "pods", "team-a", part="log")
    assert not may(bare, "create", "pods", "team-a", part="exec")
    for verb in ("get", "list", "create", "patch", "delete"):
        for resource in ("deployments.apps", "secrets", "modelservices.servewright.io", "pods"):
            assert not may(bare, verb, resource, "default"), (verb, resource)
    assert may(bare, "update", "leases.coordination.k8s.io/servewright-operator", "servewright")
    assert not may(bare, "update", "leases.coordination.k8s.io/other", "servewright")


def test_everything_is_taken_by_the_api_server_as_it_is(installed: ApiServer) -> None:
    installed.kubectl("apply", "--filename=-", stdin=POD_MONITORS)
    installed.kubectl(
        "wait", "crd/podmonitors.monitoring.coreos.com", "--for=condition=Established"
    )
    for name in ("team-a", "team-b"):
        installed.kubectl("create", "namespace", name)
    for words in (
        [],
        [f"--values={EVERYTHING}", "--set=grafanaDashboard.enabled=true"],
        [NAMED],
    ):
        dry_run = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")
        installed.kubectl(*dry_run, stdin=template(*words))


def test_the_operators_pod_is_restricted_under_any_user(installed: ApiServer) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    installed.kubectl("create", "namespace", "restricted")
    installed.kubectl("label", "namespace", "restricted", label)
    (deployment,) = of_kind(documents(template()), "Deployment")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "operator", "namespace": "restricted"},
        "spec": deployment["spec"]["template"]["spec"],
    }
    for user in ({}, {"runAsUser": 1000730000}):
        pod["spec"]["securityContext"] |= user
        installed.kubectl("create", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(pod))


@pytest.mark.parametrize(
    ("words", "kind"),
    [(["--namespace=other"], "ClusterRole"), (["--namespace=servewright", NAMED], "Role")],
    ids=["for the whole cluster", "in the same namespace"],
)
def test_a_second_operator_is_refused(installed: ApiServer, words: list[str], kind: str) -> None:
    install_it = ("install", "another", str(CHART), "--create-namespace", *words)
    second = helm.run(*install_it, kubeconfig=installed.kubeconfig)
    assert second.returncode != 0
    assert f'{kind} "servewright-operator' in second.stderr


def test_who_may_edit_a_namespace_may_edit_its_modelservices(
    control_plane: ApiServer, controlled_namespace: str
) -> None:
    for_users = [
        role
        for role in of_kind(documents(template()), "ClusterRole")
        if role["metadata"]["name"] in ("servewright-view", "servewright-edit")
    ]
    control_plane.kubectl("apply", "--filename=-", stdin=yaml.safe_dump_all(for_users))
    for role in ("view", "edit"):
        words = (f"--clusterrole={role}", f"--user={role}", f"--namespace={controlled_namespace}")
        control_plane.kubectl("create", "rolebinding", role, *words)

    def may_user(user: str, verb: str, part: str = "") -> bool:
        where = (f"--namespace={controlled_namespace}", f"--as={user}", f"--subresource={part}")
        asked = control_plane.run_kubectl("auth", "can-i", verb, "modelservices", *where)
        return asked.stdout.strip() == "yes"

    # Another controller adds up the rules.
    eventually(lambda: may_user("edit", "create"), interval_s=0.5)
    eventually(lambda: may_user("view", "watch"), interval_s=0.5)
    assert may_user("edit", "patch", "scale")
    assert not may_user("edit", "patch", "status")
    assert not may_user("view", "create")
