"""A ModelService that is suspended is not served here either."""

from __future__ import annotations

import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.local import refuse_suspended
from support.manifests import make_service


def test_suspended_service_is_refused_with_the_cure() -> None:
    services = [make_service(), make_service({"metadata.name": "off", "spec.suspend": True})]
    with pytest.raises(ConfigError, match=r"default/off: spec\.suspend is true.*set it to false"):
        refuse_suspended(services)
    refuse_suspended(services[:1])
