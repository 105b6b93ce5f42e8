"""The whole answer of the builders, held in files that are read in review.

A case is a ModelService and what the cluster has to say; `pytest tests/unit/operator/desired
--update-golden` writes the answers anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright_api import ManifestError, parse_manifest
from support.desired import children_of
from support.tree import ROOT

GOLDEN = ROOT / "tests" / "golden"
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/in.yaml"))


class _Dumper(yaml.SafeDumper):
    """What occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(documents: list[Any]) -> str:
    """YAML as a person reads it."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def answer(case: Mapping[str, Any]) -> list[Any]:
    """The children, or why there are none."""
    try:
        service = parse_manifest(case["modelService"], in_cluster=True)
    except ManifestError as error:
        return [{"refused": list(error.problems)}]
    earlier = [parse_manifest(manifest, in_cluster=True) for manifest in case.get("earlier", ())]
    return children_of(
        service,
        *earlier,
        rolled_back=case.get("rolledBack", False),
        pod_monitors=case.get("podMonitors", False),
    )


@pytest.mark.parametrize("name", CASES)
def test_the_children_are_as_the_file_says(name: str, golden: Callable[[Path, str], None]) -> None:
    case = yaml.safe_load((GOLDEN / name / "in.yaml").read_text())
    golden(GOLDEN / name / "out.yaml", dump(answer(case)))
