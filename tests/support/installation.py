"""The two charts, as README installs them, on a cluster."""

from __future__ import annotations

from support.cluster import Namespace, call
from support.tree import ROOT

OPERATOR_NAMESPACE = "servewright"


def install_crds() -> str:
    """Prints what helm says."""
    chart = str(ROOT / "charts" / "servewright-crds")
    return call("helm", "upgrade", "--install", "servewright-crds", chart, timeout_s=120)


def install_operator(*options: str) -> str:
    """Install or upgrade, and wait until it is ready. Returns what helm says."""
    chart = str(ROOT / "charts" / "servewright")
    words = ["helm", "upgrade", "--install", "servewright", chart, "--create-namespace"]
    words += [f"--namespace={OPERATOR_NAMESPACE}", "--wait", "--timeout=3m", *options]
    return call(*words, timeout_s=200)


def operator_namespace() -> Namespace:
    """The operator's namespace, and which image its models run."""
    path = "jsonpath={..env[?(@.name=='SERVEWRIGHT_RUNTIME_IMAGE')].value}"
    words = (f"--namespace={OPERATOR_NAMESPACE}", "deployment", "servewright", f"--output={path}")
    return Namespace(OPERATOR_NAMESPACE, call("kubectl", "get", *words).strip())
