"""Looks for secrets in what was redacted, by rules of its own: a second opinion that knows nothing of the first.

    find         what looks like a secret in one line of a capture: which kind and where, never the secret itself
    find_canary  a known secret in any bytes, in the encodings in which it may have slipped through

Everything in a record is looked at: members with telling names, pairs of a name and a value (headers, nodes of the
store), texts, the XML, JSON and base64 inside texts, and by position the arguments of calls that log in.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

import msgspec

_DEEPEST: Final = 3  # texts inside texts
_SHORTEST: Final = 8  # characters: nothing shows by itself in less
_HOLDERS: Final = (str, dict, list)  # of JSON's values those in which anything can be found
_LONGEST_BASE64: Final = 1 << 20  # characters
# Names, references and states come again in every record: what was found in such a text is remembered, of so many.
_SHORT: Final = 256  # characters
_REMEMBERED: Final = 16384

_WORD: Final = (
    r"pass[-_ ]?(?:word|wd|phrase|code)|pwd|secret|token|cookie|authori[sz]ation|credential|chap(?!t)"
    r"|(?:private|api|access|encryption)[-_ ]?key(?!s)"
)
# All of names are in lower case: a search without regard to case takes ten times as long.
_TELLING: Final = re.compile(_WORD)
_NO_SECRET: Final = re.compile(r"timeout|usage|limit|expir|enabled|count|length|polic")
_SESSION: Final = re.compile(r"session(?!s\b)")
_STANDS_FOR_ONE: Final = re.compile(r"\((?:secret|undeclared)\)|(?:OpaqueRef:)?5ec3e700-")
_REFERENCE: Final = r"OpaqueRef(?::|%3[Aa])(?!5ec3e700-|NULL)[0-9A-Za-z-]{4,}"
_A_REFERENCE: Final = re.compile(_REFERENCE)
_ANY_REFERENCE: Final = re.compile(r"OpaqueRef:[0-9A-Za-z-]+")
_CURSOR: Final = re.compile(r"[0-9]*(?:,[0-9]*)*")  # such as the token of event.from

_PRIVATE_KEY: Final = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")
_JWT: Final = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*")
_BASIC: Final = re.compile(r"\bbasic\s+([A-Za-z0-9+/_-]{4,})", re.IGNORECASE)
_BEARER: Final = re.compile(r"\bbearer\s+(?=\S*[0-9])[\w.~+/-]{12,}", re.IGNORECASE)
_URL: Final = re.compile(r"://[^\s/@:\"'<>]*:([^\s/@\"'<>]+)@")
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_POOL_SECRET: Final = re.compile(f"{_UUID}/{_UUID}/{_UUID}")
_PAIR: Final = re.compile(
    rf"((?:{_WORD}|session_?id)[\w.-]{{0,40}})"
    r"(?:</name>\s*<value>\s*(?:<\w+>)?([^<]+)|>([^<]{1,256})</|\\*[\"']?\s*(?:=|:|%3[Dd])\s*\\*[\"']?([^\s\"'\\&<>,;}]+))",
    re.IGNORECASE,
)
_SESSION_FIRST: Final = re.compile(
    rf"<methodName>[^<]*</methodName>\s*<params>\s*<param>\s*<value>\s*(?:<string>)?\s*{_REFERENCE}"
)
_XML_CALL: Final = re.compile(r"<methodName>\s*([^<\s]*)\s*</methodName>")
_XML_TEXT: Final = re.compile(r"<value>\s*(?:<string>)?([^<]*)")
_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}")
_PRINTABLE: Final = re.compile(rb"[\t\n\r\x20-\x7e]+")
_SHOWN_NAME: Final = re.compile(r"[\w.-]{1,40}")

# By position, as on the wire: what must not be read in calls that log in.
_POSITIONS: Final = {
    "session.login_with_password": (1,),
    "session.slave_local_login_with_password": (1,),
    "session.change_password": (1, 2),
    "session.slave_login": (1,),
    "session.slave_local_login": (0,),
    "pool.join": (3,),
    "pool.join_force": (3,),
    "secret.introduce": (1,),
    "secret.set_value": (2,),
}
_LOGINS: Final = re.compile(r"session\.(?:slave_)?(?:local_)?(?:login|get_parent|create_from)")


def find(line: bytes) -> list[str]:
    """What looks like a secret in a line: `KIND at PATH`, each once. A line that is no JSON is looked at as a text."""
    search = _Search()
    try:
        record = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        search.text(line.decode("utf-8", "replace"), "", 0)
        return search.told()
    search.value(record, "", "", 0)
    if isinstance(record, dict):
        search.sessions(record)
    return search.told()


class _Search:
    def __init__(self) -> None:
        self.found: dict[tuple[str, str], None] = {}  # what, and its path

    def note(self, what: str, path: str) -> None:
        self.found[what, path] = None

    def told(self) -> list[str]:
        return list({f"{what} at {path.removeprefix('.') or 'the line'}": None for what, path in self.found})

    def sessions(self, record: dict[str, Any]) -> None:
        """A session has no telling name where it stands by position: first in calls of xapi, alone in what logs in."""
        native = record.get("native")
        body = native.get("body") if isinstance(native, dict) else None
        first = body[0] if isinstance(body, list) and body else None
        if record.get("t") == "req" and record.get("service") == "xapi" and _is_reference(first):
            self.note("a session", ".native.body[0]")
        if record.get("t") == "rsp" and _LOGINS.match(str(record.get("method", ""))):
            for name in ("result", "native"):
                if any(_A_REFERENCE.search(text) for text in _texts(record.get(name))):
                    self.note("a session", f".{name}")

    def value(self, value: Any, name: str, path: str, depth: int) -> None:
        """A value of JSON that has that name, if any."""
        match value:
            case str():
                if name and self.named(name, value, path):
                    return
                self.text(value, path, depth)
            case dict():
                self.call(value.get("method"), value.get("params"), path)
                for key, item in value.items():
                    if len(key) >= _SHORTEST:
                        self.text(key, f"{path} (a name)", depth)
                    # What holds nothing but texts has their name: the map `secrets` as much as the list `passwords`.
                    if isinstance(item, _HOLDERS):
                        self.value(item, key, f"{path}.{_shown(key)}", depth)
            case [[str(), str()], *_]:
                self.pairs(value, path, depth)
            case list():
                for item in value:
                    self.value(item, name, f"{path}[*]", depth)

    def pairs(self, values: list[Any], path: str, depth: int) -> None:
        """Headers, nodes of the store, and what else looks like them."""
        for item in values:
            match item:
                case [str(name), str(text)]:
                    self.text(name, f"{path} (a name)", depth)
                    self.value(text, name, f"{path}.{_shown(name)}", depth)
                case _:
                    self.value(item, "", f"{path}[*]", depth)

    def named(self, name: str, text: str, path: str) -> bool:
        """Whether it is a secret by the name beside it."""
        kind = _kind_of(name)
        if kind is _NAME or not text or _STANDS_FOR_ONE.match(text):
            return False
        if kind is _OF_SESSION:
            if _A_REFERENCE.search(text) is None:
                return False
            self.note("a session", path)
            return True
        if _ANY_REFERENCE.fullmatch(text) or (kind is _OF_TOKEN and _CURSOR.fullmatch(text)):
            return False
        self.note("a value with a telling name", path)
        return True

    def call(self, method: Any, params: Any, path: str) -> None:
        """A call whose arguments stand by position."""
        if not isinstance(method, str) or not isinstance(params, list):
            return
        if params and _is_reference(params[0]):
            self.note("a session", f"{path}.params[0]")
        for index in _POSITIONS.get(method.removeprefix("Async."), ()):
            text = params[index] if index < len(params) else None
            if isinstance(text, str) and text and not _STANDS_FOR_ONE.match(text):
                self.note("an argument that is a secret", f"{path}.params[{index}]")

    def text(self, text: str, path: str, depth: int) -> None:
        """A text, with what is written inside it."""
        if len(text) < _SHORTEST:
            return
        for what, where in (_inside if len(text) > _SHORT else _inside_again)(text, depth):
            self.note(what, path + where)

    def look_into(self, text: str, depth: int) -> None:
        if depth < _DEEPEST and text.lstrip()[:1] in ("{", "["):
            try:
                inner = msgspec.json.decode(text)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                pass
            else:
                self.value(inner, "", " (json)", depth + 1)
                return
        for what in _in_text(text):
            self.note(what, "")
        self.xml(text)
        if depth < _DEEPEST and len(text) <= _LONGEST_BASE64:
            for run in _BASE64.finditer(text):
                plain = _decoded(run[0])
                if plain is not None:
                    self.text(plain, " (base64)", depth + 1)

    def xml(self, text: str) -> None:
        found = _XML_CALL.search(text)
        if found is None:
            return
        if _SESSION_FIRST.search(text):
            self.note("a session", "")
        if found[1].removeprefix("Async.") in _POSITIONS:
            texts = [each[1].strip() for each in _XML_TEXT.finditer(text)]
            self.call(found[1], ["", *texts[1:]] if texts and _is_reference(texts[0]) else texts, "")


def _inside(text: str, depth: int) -> tuple[tuple[str, str], ...]:
    """What is found in a text, and where in it."""
    search = _Search()
    search.look_into(text, depth)
    return tuple(search.found)


_inside_again: Final = lru_cache(_REMEMBERED)(_inside)


_NAME: Final = "a name"
_OF_SESSION: Final = "of a session"
_OF_TOKEN: Final = "of a token"  # noqa: S105 -- what kind of name
_OF_SECRET: Final = "of a secret"  # noqa: S105 -- what kind of name


@lru_cache(_REMEMBERED)
def _kind_of(name: str) -> str:
    """What a name tells of the value beside it."""
    name = name.lower()
    if _SESSION.search(name):
        return _OF_SESSION
    if not _TELLING.search(name) or _NO_SECRET.search(name):
        return _NAME
    return _OF_TOKEN if "token" in name else _OF_SECRET


def _in_text(text: str) -> Iterator[str]:
    """The kinds of secrets that show by themselves."""
    lower = text.lower()
    if _PRIVATE_KEY.search(text):
        yield "a private key"
    if "eyJ" in text and _JWT.search(text):
        yield "a JWT"
    if "basic" in lower and any(":" in (_decoded(found[1]) or "") for found in _BASIC.finditer(text)):
        yield "Basic credentials"
    if "bearer" in lower and _BEARER.search(text):
        yield "a Bearer token"
    if "://" in text and any(not _STANDS_FOR_ONE.match(found[1]) for found in _URL.finditer(text)):
        yield "a password in a URL"
    if _POOL_SECRET.search(text):
        yield "a pool secret"
    search = _Search()
    for found in _PAIR.finditer(text) if _TELLING.search(lower) or "session" in lower else ():
        search.named(found[1], next(filter(None, found.groups()[1:])), "")
    if search.found:
        yield "a value beside a telling name"


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and _A_REFERENCE.fullmatch(value) is not None


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case dict():
            yield from _texts(list(value.values()))


@lru_cache(_REMEMBERED)
def _shown(name: str) -> str:
    """A name that may be shown: it may be a secret itself."""
    return name if _SHOWN_NAME.fullmatch(name) and not any(c.isdigit() for c in name) else "*"


def _decoded(text: str) -> str | None:
    """The printable text that a base64 text stands for."""
    text = text.translate(_URL_SAFE)
    text = text[: len(text) - (len(text) % 4 == 1)]
    try:
        found = base64.b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return None
    return found.decode("ascii") if _PRINTABLE.fullmatch(found) else None


_URL_SAFE: Final = str.maketrans("-_", "+/")


def find_canary(blob: bytes, canary: str) -> list[str]:
    """The encodings in which a text is found in some bytes."""
    plain = canary.encode()
    found = ["plain"] if plain in blob else []
    for name, forms in _encodings(canary).items():
        if any(form in blob for form in forms if form != plain):
            found.append(name)
    return found


def _encodings(canary: str) -> dict[str, list[bytes]]:
    plain = canary.encode()
    percent = "".join(f"%{byte:02x}" for byte in plain)
    units = [int.from_bytes(pair, "big") for pair in _pairs(canary.encode("utf-16-be"))]
    in_json = [json.dumps(canary)[1:-1], json.dumps(canary, ensure_ascii=False)[1:-1]]
    in_json += [text.replace("/", "\\/") for text in in_json] + ["".join(f"\\u{unit:04x}" for unit in units)]
    quoted = {'"': "&quot;", "'": "&apos;"}
    in_xml = [escape(canary), escape(canary, quoted), escape(canary, quoted | {"'": "&#39;"})]
    in_xml += ["".join(f"&#{ord(c)};" for c in canary), "".join(f"&#x{ord(c):x};" for c in canary)]
    in_url = [quote(canary, safe=""), quote(canary), quote_plus(canary), percent, percent.upper()]
    in_url += [re.sub("%..", lambda found: found[0].lower(), text) for text in in_url]
    standard = _in_base64(plain)
    return {
        "URL-encoded": [text.encode() for text in in_url],
        "JSON-escaped": [text.encode() for text in in_json],
        "XML-escaped": [text.encode() for text in in_xml],
        "hex": [plain.hex().encode(), plain.hex().upper().encode()],
        "base64": standard + [form.translate(bytes.maketrans(b"+/", b"-_")) for form in standard],
        "UTF-16 LE": [canary.encode("utf-16-le")],
        "UTF-16 BE": [canary.encode("utf-16-be")],
        "reversed": [canary[::-1].encode()],
        "rot13": [codecs.encode(canary, "rot13").encode()],
    }


def _pairs(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 2] for at in range(0, len(data), 2))


def _in_base64(plain: bytes) -> list[bytes]:
    """What of the base64 of a longer text depends on this part of it alone, at each of the three alignments."""
    found = []
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(plain)) * 8 // 6
        found.append(base64.b64encode(bytes(before) + plain)[first:last])
    return found
