"""The HTTP client: whom it trusts, where it lets itself be sent, and what it keeps out of logs."""

from __future__ import annotations

import logging
import os
import ssl

import httpx

from servewright_runtime.errors import ConfigError, StartError
from servewright_runtime.fetch.retry import HttpPolicy, Retry
from servewright_runtime.fetch.uri import HttpSource, redacted


def open_client(source: HttpSource, policy: HttpPolicy) -> httpx.Client:
    """A client with the proxies and certificates of the environment. Raises ConfigError."""
    logging.getLogger("httpx").addFilter(_redact_request)
    try:
        httpx.URL(source.uri)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{source.shown} is no valid URL: {error}; correct it.") from None
    try:
        return httpx.Client(
            verify=_tls_context(source),
            timeout=httpx.Timeout(policy.read_timeout_s, connect=policy.connect_timeout_s),
            headers={"Accept-Encoding": "identity", "User-Agent": "servewright"},
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"{source.shown} was not downloaded: HTTPS_PROXY or another proxy setting of the "
            "environment names no HTTP proxy; write it like http://host:port."
        ) from error


def answer(
    http: httpx.Client, source: HttpSource, headers: dict[str, str], policy: HttpPolicy
) -> httpx.Response:
    """The answer at the end of the redirects, its body not yet read."""
    if source.token is not None:
        # httpx drops this one from a redirect to another host or port.
        headers = {**headers, "Authorization": f"Bearer {source.token}"}
    request = http.build_request("GET", source.uri, headers=headers)
    for _ in range(policy.max_redirects + 1):
        response = http.send(request, stream=True)
        if not response.has_redirect_location:
            return response
        response.close()
        assert response.next_request is not None
        if request.url.scheme == "https" and response.next_request.url.scheme != "https":
            raise ConfigError(
                f"{source.shown} is redirected to {redacted(str(response.next_request.url))}, "
                "which is not encrypted and so not followed; name an https:// source."
            )
        request = response.next_request
    raise ConfigError(
        f"{source.shown} is redirected more than {policy.max_redirects} times; name the file's "
        "own URL in model.source."
    )


def failure_of(source: HttpSource, error: httpx.TransportError) -> Retry:
    """What another attempt may mend. Raises StartError on what it cannot."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise StartError(
                f"{source.shown} was not downloaded: the server's certificate is not trusted "
                f"({cause.verify_message}); if it is signed by an authority of your own, name that "
                "one's certificate in SSL_CERT_FILE.",
                reason="CertificateNotTrusted",
            ) from error
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.UnsupportedProtocol):
        raise ConfigError(f"{source.shown} was not downloaded: it leads to no HTTP URL.") from error
    if isinstance(error, httpx.TimeoutException):
        return Retry(f"the server did not answer in time ({type(error).__name__})")
    return Retry(str(error) or type(error).__name__)


def _tls_context(source: HttpSource) -> ssl.SSLContext:
    """The system's authorities and certifi's, or only those that the user names."""
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        raise ConfigError(
            f"{source.shown} was not downloaded: {named!r}, which SSL_CERT_FILE or SSL_CERT_DIR "
            f"names, holds no certificates that can be read ({error.strerror or error})."
        ) from error
    if not named:
        context.load_default_certs()
    return context


def _redact_request(record: logging.LogRecord) -> bool:
    """httpx logs each URL whole; a query or user may be a credential."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            redacted(str(arg)) if isinstance(arg, httpx.URL) else arg for arg in record.args
        )
    return True
