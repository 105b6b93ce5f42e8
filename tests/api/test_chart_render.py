"""What the operator's chart renders, with helm alone: goldens, refusals, and what never changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from servewright_api import __version__
from support import helm
from support.helm import documents, of_kind, template
from support.tree import ROOT

GOLDEN = ROOT / "tests/golden/chart"
CASES = ("defaults", "digests", "everything", "namespaces")
REFUSED = {
    # Helm 3 and 4 word what the schema refuses differently; both name the key.
    "a misspelt key": ("replica=3", "replica"),
    "a misspelt key inside": ("resources.limits.memroy=1Gi", "memroy"),
    "a moving tag": ("image.tag=latest", "tag"),
    "half a digest": ("image.digest=sha256:12", "digest"),
    "a number as text": ("replicas=two", "replicas"),
    "no ServiceAccount": (
        "serviceAccount.create=false",
        "serviceAccount.create is false, so the chart makes no ServiceAccount; "
        "set serviceAccount.name to one that exists",
    ),
    "no repository": (
        "runtime.image.repository=null",
        "runtime.image.repository is empty; set it to the image's name within localhost",
    ),
    "no registry": ("registry=null", "registry is empty; set it to where the images are"),
}

pytestmark = pytest.mark.skipif(helm.program() is None, reason=helm.HOW_TO_GET_IT)


def values(case: str) -> str:
    """The flag for a case's values."""
    return f"--values={GOLDEN / case / 'values.yaml'}"


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_those_of_the_golden_file(
    case: str, golden: Callable[[Path, str], None]
) -> None:
    golden(GOLDEN / case / "out.yaml", normal(template(values(case))))


def normal(text: str) -> str:
    """Helm 3 and 4 separate and order documents a little differently."""
    parts = [part.strip() for part in text.removeprefix("---\n").split("\n---\n")]
    return "\n---\n".join(sorted(part for part in parts if part)) + "\n"


@pytest.mark.parametrize(("setting", "words"), REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_refused_by_its_name(setting: str, words: str) -> None:
    kubernetes = f"--kube-version={helm.KUBERNETES}"
    done = helm.run("template", "servewright", helm.CHART, kubernetes, "--set", setting)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_nothing(case: str) -> None:
    kubernetes = f"--kube-version={helm.KUBERNETES}"
    helm.helm("lint", "--strict", helm.CHART, kubernetes, values(case))


@pytest.mark.parametrize("case", CASES)
def test_whatever_selects_the_operators_pods_selects_them_for_ever(case: str) -> None:
    found = documents(template(values(case)))
    wanted = {
        "app.kubernetes.io/name": "servewright-operator",
        "app.kubernetes.io/instance": "servewright",
    }
    (deployment,) = of_kind(found, "Deployment")
    assert deployment["spec"]["selector"] == {"matchLabels": wanted}
    assert deployment["spec"]["template"]["metadata"]["labels"].items() >= wanted.items()
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert all(one["spec"]["selector"]["matchLabels"] == wanted for one in of_kind(found, kind))


def test_images_are_of_the_charts_version_unless_told() -> None:
    (deployment,) = of_kind(documents(template()), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert container["image"] == f"localhost/servewright-operator:{__version__}"
    for variable, name in {"RUNTIME": "runtime", "CUDA": "runtime-cuda"}.items():
        image = f"localhost/servewright-{name}:{__version__}"
        assert environment[f"SERVEWRIGHT_{variable}_IMAGE"] == image


def test_the_dashboard_is_carried_as_it_is() -> None:
    (config,) = of_kind(documents(template("--set=grafanaDashboard.enabled=true")), "ConfigMap")
    dashboard = (helm.CHART / "dashboards/servewright.json").read_text()
    assert config["data"] == {"servewright.json": dashboard}
    assert config["metadata"]["labels"].items() >= {"grafana_dashboard": "1"}.items()


def test_watched_namespaces_get_the_rights_that_the_cluster_would() -> None:
    whole = documents(template("--set=aggregateRoles=false"))
    (everywhere,) = of_kind(whole, "ClusterRole")
    found = documents(template(values("namespaces")))
    assert of_kind(found, "ClusterRole") == of_kind(found, "ClusterRoleBinding") == []
    roles = {role["metadata"]["namespace"]: role["rules"] for role in of_kind(found, "Role")}
    assert roles["team-a"] == roles["team-b"] == everywhere["rules"]
    assert set(roles) == {"team-a", "team-b", "servewright"}


def test_releases_for_different_namespaces_share_no_name() -> None:
    def names(release: str) -> set[tuple[str, str, str]]:
        words = (f"--namespace={release}", f"--set=watchNamespaces={{{release}}}")
        kubernetes = f"--kube-version={helm.KUBERNETES}"
        text = helm.helm("template", release, helm.CHART, kubernetes, *words)
        return {
            (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"])
            for one in documents(text)
        }

    assert names("ours") & names("theirs") == set()
