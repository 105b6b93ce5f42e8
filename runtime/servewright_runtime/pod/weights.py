"""The model's file in a pod: fetched once into the pod's own folder, or mounted from a claim."""

from __future__ import annotations

from pathlib import Path

from servewright_api import ModelService
from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch import source
from servewright_runtime.fetch.cache import Cache
from servewright_runtime.fetch.digest import Progress
from servewright_runtime.fetch.mounted import mounted_file
from servewright_runtime.fetch.source import Fetched
from servewright_runtime.fetch.space import Cures
from servewright_runtime.fetch.uri import PvcSource, parse
from servewright_runtime.pod.given import Mounts

_SCHEMES = ("pypi", "https", "http", "pvc")
_CURES = Cures(
    when_full="make room on the node, or put the model into a claim and name it by pvc://",
    when_closed="delete the pod, so that it gets a new volume",
)
_TOKEN = "TOKEN"  # noqa: S105 - the name of a Secret's key


def fetch(service: ModelService, mounts: Mounts, progress: Progress) -> Fetched:
    """Bring the model's file into its mount, or verify the one in a claim.

    What an earlier container of this pod has brought is not brought again. Raises ConfigError,
    StartError.
    """
    model = service.spec.model
    return source.fetch(
        model.source,
        digest=model.digest,
        cache=_cache(mounts),
        progress=progress,
        allow=_SCHEMES,
        token=_token(service, mounts),
        mount=mounts.model,
    )


def find(service: ModelService, mounts: Mounts) -> tuple[Path, str | None]:
    """Where the file lies that `fetch` has brought or verified, and its digest if it has one.

    Asks nobody and writes nothing. Raises ConfigError, StartError.
    """
    model = service.spec.model
    parsed = parse(model.source)
    if isinstance(parsed, PvcSource):
        path = mounted_file(parsed, mounts.model)
        if not path.is_file():
            raise ConfigError(
                f"{parsed.shown}: there is no file {parsed.path} in the claim {parsed.claim}; "
                "correct model.source or put the file there."
            )
        return path, model.digest
    held = _cache(mounts).find(parsed.uri, model.digest)
    if held is None:
        raise StartError(
            f"{parsed.shown} is not whole in {mounts.model}, where the container that fetches it "
            "leaves it; delete the pod, so that it is fetched again.",
            reason="ModelMissing",
        )
    held.close()  # nobody removes it
    return held.path, held.record.digest


def _cache(mounts: Mounts) -> Cache:
    return Cache(mounts.model, max_bytes=None, cures=_CURES)


def _token(service: ModelService, mounts: Mounts) -> str | None:
    """The bearer token for the source, if the manifest names a Secret. Never shown."""
    secret = service.spec.model.credentials_secret
    if secret is None:
        return None
    who = f"The Secret {secret.name} of spec.model.credentialsSecret"
    try:
        token = (mounts.credentials / _TOKEN).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{who} has no key {_TOKEN} that can be read ({error}); put the source's bearer token "
            "there."
        ) from None
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ConfigError(f"{who}: its key {_TOKEN} is no bearer token; it is one word of ASCII.")
    return token
