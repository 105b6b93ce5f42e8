"""Reads one ModelService and what belongs to it, with the rights of whoever asks."""

from __future__ import annotations

import os

from kubernetes.aio.client import Configuration
from kubernetes.aio.config import (
    KUBE_CONFIG_DEFAULT_LOCATION,
    list_kube_config_contexts,
    load_kube_config,
)

from servewright_operator import kinds, names
from servewright_operator.client import ApiError, Client
from servewright_operator.showing import View


class CannotLook(Exception):
    """Why nothing can be told. The message is one sentence with the cure."""


async def look(
    name: str, *, namespace: str | None, context: str | None, kubeconfig: str | None
) -> View:
    """The ModelService as it is now. Raises CannotLook.

    namespace None: the context's own. kubeconfig None: KUBECONFIG, or the user's own file.
    """
    configuration = Configuration()
    try:
        _check_there_is_one(kubeconfig or KUBE_CONFIG_DEFAULT_LOCATION)
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, context=context, client_configuration=configuration
        )
        namespace = namespace or _namespace(kubeconfig, context)
    except Exception as error:  # it has no care for files that are not as they should be
        raise CannotLook(
            f"No cluster is known here: {_line(error)}; set KUBECONFIG, or give --kubeconfig and "
            "--context."
        ) from error
    title = f"ModelService {namespace}/{name}"
    try:
        async with Client(configuration) as client:
            service = await client.get(kinds.MODEL_SERVICE, namespace, name)
            if service is None:
                raise CannotLook(
                    f"There is no {title}; list those there are with: "
                    "kubectl get modelservices --all-namespaces"
                )
            selector = ",".join(f"{key}={value}" for key, value in names.selector(name).items())
            revisions, _ = await client.list_all(
                kinds.CONTROLLER_REVISION, namespace, selector=selector
            )
            pods, _ = await client.list_all(kinds.POD, namespace, selector=selector)
    except ApiError as error:
        raise CannotLook(_why(error, configuration.host, title)) from error
    return View(service, revisions, pods)


def _check_there_is_one(paths: str) -> None:
    """The client only warns. Raises FileNotFoundError."""
    if not any(os.path.exists(os.path.expanduser(path)) for path in paths.split(os.pathsep)):
        raise FileNotFoundError(f"there is no {paths}")


def _namespace(kubeconfig: str | None, context: str | None) -> str:
    contexts, active = list_kube_config_contexts(  # type: ignore[no-untyped-call]
        config_file=kubeconfig
    )
    chosen = next((one for one in contexts if one["name"] == context), active)
    return str(chosen["context"].get("namespace") or "default")


def _why(error: ApiError, host: str, title: str) -> str:
    match error.status:
        case 0:
            return f"The cluster at {host} gives no answer: {_line(error.message)}; is it up?"
        case 401:
            return f"The cluster at {host} does not know you; log in again."
        case 403:
            return f"You may not look at {title}: {_line(error.message)}; ask for these rights."
        case _:
            return f"The cluster at {host} would not tell about {title}: {_line(error.message)}."


def _line(words: object) -> str:
    """Anything in one line, without a full stop."""
    return " ".join(str(words).split()).rstrip(".")
