"""Addresses of files and servers without what logs in there: configurations are kept and shown. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

LOGIN = re.compile(r"://[^:/]*(?P<password>:[^@]*)?@([^/?#]*@)?")
"""User and password in the address of a database. As SQLAlchemy reads them, / and ? may be in a password."""
_BEFORE_HOST = re.compile(r"://[^/?#:@]*:[^/?#]*@|https?://[^/?#]*@", re.IGNORECASE)
"""A password in any other address, or what stands before a web server's name: it may be a token."""
_QUERY = re.compile(
    r"([?&;](?:[^=&;#]*(?:passw|pwd|secret|token|signature|credential|api_?key|accesskey)[^=&;#]*|key|sig)=)[^&;#]+",
    re.IGNORECASE,
)
_ON_DISK = ("file:", "sqlite:")
SAID = "it holds a password, a token or a signature, and a configuration is kept with every checkpoint and shown"


def shown(uri: str) -> str:
    """The address of a database or a server without user, password and secrets of its query."""
    return LOGIN.sub("://", _QUERY.sub(r"\1***", uri) if _of_a_server(uri) else uri)


def holds_secret(uri: str) -> bool:
    """Whether an address has a password, or a query that gives access. Paths and Hub ids may have any character."""
    return _of_a_server(uri) and bool(_BEFORE_HOST.search(uri) or _QUERY.search(uri))


def _of_a_server(uri: str) -> bool:
    return "://" in uri and not uri.startswith(_ON_DISK)


def _without_secret(uri: str) -> str:
    if holds_secret(uri):
        raise ValueError(
            f"{SAID} on MLflow's page; leave it out and give it in the environment (of S3: AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), or copy the files to a folder"
        )
    return uri


Uri = Annotated[str, AfterValidator(_without_secret)]
"""Where files are: a path, an address or a Hub id. One that holds a secret is refused."""
