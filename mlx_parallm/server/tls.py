"""https with the certificate of --ssl-certfile."""

from __future__ import annotations

import ssl

from mlx_parallm.settings import Settings, SettingsError


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """What connections are encrypted with; None serves http.

    Raises:
        SettingsError: a file cannot be used, or one is missing.
    """
    if settings.ssl_certfile is None:
        for flag, value in (
            ("--ssl-keyfile", settings.ssl_keyfile),
            ("--ssl-ca-certs", settings.ssl_ca_certs),
        ):
            if value is not None:
                raise SettingsError(f"{flag} needs --ssl-certfile")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, _no_password)
    except (OSError, ssl.SSLError) as error:
        shown = settings.ssl_keyfile or settings.ssl_certfile
        raise SettingsError(
            f"--ssl-certfile {settings.ssl_certfile} with the key {shown}: {_why(error)}"
        ) from None
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"--ssl-ca-certs {settings.ssl_ca_certs}: {_why(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return "not a PEM file that fits: " + str(error.reason or error)
    return error.strerror or str(error)


def _no_password() -> str:
    raise OSError("the key has a password; write it without one")
