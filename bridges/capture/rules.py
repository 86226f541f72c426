"""What looks like a secret by its name or by itself, whatever the interface says of it.

Names are taken apart first (`oldPwd`, `old-pwd` and `vm-data/old_pwd` end in `_pwd`). Texts are searched for PEM
blocks, tokens (JWT, Bearer), Basic credentials, passwords in URLs, `password=...` in all the ways in which values are
put into texts (query, JSON, XML, S-expression, the legacy decoders' own), references, pool secrets, and long random
texts. A hash in hex, a uuid or a number is not random here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Final

from bridges.comparison import SECRET

UNDECLARED: Final = "(undeclared)"  # what stands for a text at a place that is not written down
HEADERS: Final = frozenset({"accept", "connection", "content-length", "content-type", "host", "user-agent"})
QUERIES: Final = frozenset(
    ("cf", "dry_run", "export_snapshots", "format", "full_restore", "host", "host_uuid", "id", "interval", "json",
     "restore", "sr_uuid", "start", "subtask_of", "task_id", "use_compression", "uuid", "vdi", "vm", "vm_uuid")
)  # fmt: skip

_HUMP: Final = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN: Final = re.compile("[^A-Za-z0-9]+")
_NAME: Final = re.compile(
    r"passw(?:or)?d|passphrase|passcode|pwd|secret|token(?!_?timeout)|cookie|credential|authorization|unattend|sysprep"
    r"|(?:^|_)(?:pass(?:_(?:code|phrase|word))?|auth|creds?|jwt|keytab|otp|psk|sig|signature)$"
    r"|^pin(?:_?code)?$|(?:^|_)sas(?:_|$)|(?:^|_)(?:incoming|outgoing|mutual)?_?chap(?!t)"
    r"|(?:access|account|api|auth|client|crypt|cryption|host|licen[cs]e|luks|master|private|product|server|session|shared"
    r"|signing|ssh|ssl|tls|wpa)_?key(?:_|$)"
    r"|(?:^|_)sessions?(?:_?(?:id|ref|handle|to|uuid)s?)?$"
    r"|device_config$|user_?data$|cloud_?(?:config|init)"
)

REFERENCE: Final = "OpaqueRef:"
_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_REFERENCE: Final = re.compile(r"OpaqueRef(:|%3[Aa])(?!NULL)([0-9A-Za-z-]+)")
_TOKEN: Final = re.compile(r"(?:OpaqueRef(?::|%3[Aa]))?5ec3e700(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# No rule below finds anything in these.
_PLAIN: Final = re.compile(r"[\w./-]{0,19}|[0-9a-fA-F:.,-]+")

_PEM: Final = re.compile(r"-----BEGIN [^-]{1,64}-----.*?(?:-----END [^-]{1,64}-----|\Z)", re.DOTALL)
_JWT: Final = re.compile(r"(?<![\w-])eyJ[\w-]{6,}(?:\.[\w-]*){2,4}")
_BASIC: Final = re.compile(r"(?i:basic)(?:\s+|%20|\+)([A-Za-z0-9+/_=-]{4,})")
_BEARER: Final = re.compile(r"(?i:bearer)(?:\s+|%20|\+)((?=\S*\d)[\w.~+/=-]{8,})")
# A password may have what a URL has no place for; a port is none.
_URL: Final = re.compile(
    r"""://(?:[^\s/@:?#"'<>]*:(?!\d{1,5}(?:[/?#"'<,;\s]|\Z))|(?=[^\s/@:?#"'<>]{20}))(\S{1,256})@(?=[\w.\[(-])"""
)
_POOL_SECRET: Final = re.compile(rf"{_UUID}(?:/{_UUID}){{2,}}")
_WORDS: Final = (
    r"passw(?:or)?d|passphrase|pwd|secret|token(?!_?timeout)|cookie|credentials?|authorization|session_?id|private_?key"
    r"|(?:access|api|auth)_?key|\b(?:pass|sig|sas)\b"
)
_WORD: Final = re.compile(_WORDS)
_STANDS_FOR_ONE: Final = rf"(?!{_TOKEN.pattern}|[(](?:secret|undeclared)[)])"
_PAIR: Final = re.compile(
    rf"(?i:{_WORDS})[\w.-]{{0,24}}(?:"
    # <password>x, <name>password</name><value>x
    rf"(?:</\w+>\s*<\w+>(?:\s*<\w+>)?|>){_STANDS_FOR_ONE}(?P<element>[^<]+)"
    # password=x, "password": "x", password => 'x', 'password' 'x', password:S(x)
    r"""|(?:\\*["']?\s*(?:=>|[:=]|%3[Dd])\s*|["']\s+(?=["']))(?:"""
    rf"""\\+"{_STANDS_FOR_ONE}(?P<escaped>.+?)(?:\\+"|\Z)"""
    rf"""|"{_STANDS_FOR_ONE}(?P<double>(?:\\.|[^"\\])+)|'{_STANDS_FOR_ONE}(?P<single>(?:\\.|[^'\\])+)"""
    rf"""|[SIFBD]\({_STANDS_FOR_ONE}(?P<shape>.+?)(?:\)(?=[;}}\]'])|\.\.\.|\)?\Z)"""
    rf"""|(?![SIFBD]\(){_STANDS_FOR_ONE}(?P<bare>[^\s"'&<>\\][^\s&<>]*)))""",
    re.DOTALL,
)

_RUN: Final = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_HEX_RUN: Final = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{4,}(?![0-9A-Za-z])")
_PART: Final = re.compile(r"[A-Za-z0-9+]{20,}")
_LONGEST_PART: Final = 4096  # characters that are looked at
_CLASSES: Final = str.maketrans(
    {c: k for k, cs in {"a": range(97, 123), "A": range(65, 91), "0": range(48, 58)}.items() for c in map(chr, cs)}
)
_MIXED: Final = 0.42  # changes of class a character: of random base64 it is 0.64, of CamelCase below 0.4
_MIXED_IN_LOWER: Final = 0.3  # of random base36 it is 0.4
_LONGEST_LOWER: Final = 32

Token = Callable[[str], str]


def is_secret_name(name: str) -> bool:
    """Whether what has this name is secret, by the words in it."""
    return _NAME.search(_BETWEEN.sub("_", _HUMP.sub("_", name)).lower()) is not None


def is_token(text: str) -> bool:
    """Whether a text is what `Redactor.token` makes."""
    return _TOKEN.fullmatch(text) is not None


def is_reference(text: str) -> bool:
    """Whether a text is a reference to something and nothing else."""
    found = _REFERENCE.fullmatch(text)
    return found is not None and found[1] == ":"


def is_plain(text: str) -> bool:
    """Whether a text is so simple that no rule can find anything."""
    return _PLAIN.fullmatch(text) is not None


def without_secrets(text: str, token: Token, found: set[str]) -> str:
    """The text with all that looks like a secret replaced: references by tokens, the rest by SECRET.

    What stood there is added to `found`, where another text might repeat a part of it.
    """

    def hide(match: re.Match[str]) -> str:
        start, end = match.span(match.lastindex or 0)
        found.add(match.string[start:end])
        return match.string[match.start() : start] + SECRET + match.string[end : match.end()]

    if "-----BEGIN" in text:
        text = _PEM.sub(SECRET, text)
    if "OpaqueRef" in text:
        text = _REFERENCE.sub(lambda match: _reference(match, token, found), text)
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    lower = text.lower()
    if "basic" in lower:
        text = _BASIC.sub(lambda match: hide(match) if _is_basic(match[1]) else match[0], text)
    if "bearer" in lower:
        text = _BEARER.sub(hide, text)
    if "://" in text and "@" in text:
        text = _URL.sub(lambda match: match[0] if match[1] == SECRET else hide(match), text)
    if _WORD.search(lower):
        text = _PAIR.sub(hide, text)
    if text.count("/") > 1:
        text = _POOL_SECRET.sub(SECRET, text)
    return _RUN.sub(lambda match: SECRET if _is_random(match[0]) else match[0], text)


def without_quotes(text: str) -> str:
    """The text without what is between its first and its last quote: where decoders show what does not fit."""
    found = [place for quote in "'\"" for place in (text.find(quote), text.rfind(quote)) if place >= 0]
    if not found or text[min(found) + 1 : max(found)] == SECRET:
        return text
    return text[: min(found) + 1] + SECRET + (text[max(found) :] if len(set(found)) > 1 else "")


def _reference(match: re.Match[str], token: Token, found: set[str]) -> str:
    if is_token(match[0]):
        return match[0]
    reference = REFERENCE + match[2]
    if match.string.endswith("session_id=", 0, match.start()):
        found.add(reference)
    return f"OpaqueRef{match[1]}{token(reference).removeprefix(REFERENCE)}"


def _is_basic(text: str) -> bool:
    """Whether it is the base64 of USER:PASSWORD."""
    try:
        return b":" in base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_")
    except (binascii.Error, ValueError):
        return False


def _is_random(run: str) -> bool:
    return any(_is_random_part(part[0][:_LONGEST_PART]) for part in _PART.finditer(_HEX_RUN.sub("", run)))


def _is_random_part(part: str) -> bool:
    classes = part.translate(_CLASSES)
    kinds = set(classes) - {"+"}
    changes = sum(map(str.__ne__, classes, classes[1:])) / len(part)
    if len(kinds) == 3:
        return changes >= _MIXED
    return kinds == {"a", "0"} and len(part) >= _LONGEST_LOWER and changes >= _MIXED_IN_LOWER


def policy(tables: object) -> str:
    """A digest of the rules of this file and of the caller's tables: 16 hex digits that change when a rule does."""
    rules = [
        (value.pattern, value.flags) if isinstance(value, re.Pattern) else _ordered(value)
        for name, value in sorted(globals().items())
        if name.isupper()
    ]
    return hashlib.sha256(repr((rules, tables)).encode()).hexdigest()[:16]


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value
