"""Errors of the client.

::

    ClientError
    ├── InputError          what was asked for cannot be, told before the server is asked
    ├── ServerUnavailable   no answer within the time for retries
    ├── AccessRefused       server and client do not trust each other: a certificate, a name, a token
    ├── RequestRejected     the server refused a request; its words, with its status code
    ├── BadAnswer           the server answered what no answer to the request can be
    ├── ReleaseChanged      the server came back with another release in the middle of a slide
    │   └── ReleasesMixed   servers of two releases, or of two engines, answer to one name
    ├── ServerStartError    an embedded server did not become ready
    └── OutputError         a result could not be written
"""

from __future__ import annotations

from m2ost_contract import M2OSTError


class ClientError(M2OSTError):
    """Base of every error that ``m2ost_client`` raises on purpose."""


class InputError(ClientError):
    """The caller asked for what cannot be: a gene that is not in the panel, views at an impossible resolution."""


class ServerUnavailable(ClientError):
    """The server did not answer within the time for retries."""


class AccessRefused(ClientError):
    """Server and client do not trust each other: a certificate, the name it is for, or a token. No retry helps."""


class RequestRejected(ClientError):
    """The server refused a request.

    Parameters
    ----------
    message : str
        The server's words.
    status : str
        Its gRPC status, e.g. ``NOT_FOUND``.
    """

    def __init__(self, message: str, status: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type[RequestRejected], tuple[str, str]]:
        return type(self), (str(self), self.status)


class BadAnswer(ClientError):
    """The server answered what no answer to the request can be.

    Parameters
    ----------
    what : str
        What is wrong with it.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"the server's answer cannot be used: {what}; check that it serves a release of this version")
        self.what = what

    def __reduce__(self) -> tuple[type[BadAnswer], tuple[str]]:
        return type(self), (self.what,)


class ReleaseChanged(ClientError):
    """The server serves another release than at the start of the slide."""


class ReleasesMixed(ReleaseChanged):
    """Servers of two releases, or of two engines, answer to one name: who asks it would mix them.

    Parameters
    ----------
    address : str
        The name.
    what : str
        Which server serves something else.
    meant : str
        What is meant, in words.
    """

    def __init__(self, address: str, what: str, meant: str) -> None:
        super().__init__(
            f"{address} stands for servers that do not serve the same; {meant} was meant: {what}; ask for servers of "
            "one release by a name or an address of their own, or wait until all serve the same, and run the same "
            "command again"
        )
        self._given = address, what, meant

    def __reduce__(self) -> tuple[type[ReleasesMixed], tuple[str, str, str]]:
        return type(self), self._given


class ServerStartError(ClientError):
    """A tritonserver could not be found, started, or kept alive."""


class OutputError(ClientError):
    """A result could not be written."""
