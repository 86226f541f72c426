"""How calls look at each socket of a service: its encodings, its dialect, its manners as an HTTP server."""

from __future__ import annotations

from typing import Final, NamedTuple

from bridges.settings import ServiceSettings
from bridges.xmlrpc_translation import Translation
from xmlrpc_gateway import manners
from xmlrpc_gateway.client import DaemonClient
from xmlrpc_gateway.dialects import DIALECTS
from xmlrpc_gateway.encodings import JSON_OF, XML, Encoding

_XAPI_JSON_PATH: Final = "/jsonrpc"
# rrdd unpacks a posted archive there: HTTP that is no call.
_PAGES: Final = {"rrdd": ("/rrd_unarchive",)}


class Tongue(NamedTuple):
    """How calls look on a socket: the bytes, and the layout of arguments and values."""

    encoding: Encoding
    translation: Translation


class Tongues:
    """The tongues of one service."""

    def __init__(self, settings: ServiceSettings) -> None:
        dialect = DIALECTS[settings.dialect]
        self._is_xapi = settings.dialect == "xenapi"
        self._xml = Tongue(XML, Translation(dialect, integers_as_text=XML.integers_as_text))
        json = JSON_OF[settings.dialect]
        self._json = Tongue(json, Translation(dialect, integers_as_text=json.integers_as_text))
        self._http = self._json if settings.http is not None and settings.http.format == "json" else self._xml
        if self._is_xapi:
            own = () if settings.http is None else (str(settings.http.socket), str(settings.http.legacy))
            self.manner = manners.xapi(*own)
        else:
            self.manner = manners.rpclib(settings.name, *_PAGES.get(settings.name, ()))

    def at(self, target: str) -> Tongue:
        """The tongue of calls at a request's target on the HTTP socket."""
        if self._is_xapi:
            return self._json if target.partition("?")[0] == _XAPI_JSON_PATH else self._xml
        return self._http

    def call(self) -> Tongue:
        """The tongue in which we call the legacy daemon over HTTP."""
        return self._http

    def frame(self) -> Tongue:
        """The tongue of the framed socket."""
        return self._json

    def http_client(self, path: str) -> DaemonClient:
        """A client of the legacy daemon's HTTP socket: rpclib daemons are asked at the socket's path."""
        xapi = _XAPI_JSON_PATH if self._http is self._json else "/"
        return DaemonClient(path, target=xapi if self._is_xapi else None)
