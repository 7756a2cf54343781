"""Requests that the network lost: what urllib3 raises, and what to say of it."""

import ssl

import urllib3

LOST = (urllib3.exceptions.HTTPError, OSError)
"""What such a request raises, in any of its stages."""


def reason(error: BaseException) -> str:
    """One line without the objects that urllib3 shows."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, BaseException):
        return reason(inner)
    text = " ".join(str(error).split()) or type(error).__name__
    return text.rpartition(">: ")[2] or text


def is_untrusted(error: BaseException | None) -> bool:
    """Whether the cause, or the cause of that, is a certificate that nobody here vouches for."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
