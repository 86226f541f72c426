"""How texts are redacted: what is known in one walk over a message, and the leaves of all walks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote, quote_plus
from xml.sax.saxutils import escape

from bridges.capture import rules
from bridges.capture.rules import REFERENCE, UNDECLARED, is_secret_name
from bridges.comparison import SECRET

_SHORTEST: Final = 4  # characters of a secret that is looked for in other texts
_MOST: Final = 64  # secrets that are looked for, the longest ones
CONSTANTS: Final = (SECRET, UNDECLARED)
_TOO_COMMON: Final = frozenset({"true", "false", "none", "null"})
_KNOWN: Final = 8192  # texts and names that are remembered as harmless
_LONGEST_KNOWN: Final = 256  # characters of one


class Pass:
    """One walk over one message: which secrets of its call are known, what it finds, and where.

    `guarded`: what stands in quotes may be a secret.
    """

    def __init__(self, secrets: frozenset[str], *, guarded: bool = False) -> None:
        self.references = {text for text in secrets if text.startswith(REFERENCE)}
        self.words = secrets - self.references if secrets else secrets
        self.guarded = guarded
        self.is_plain = not self.words and not guarded
        self.paths: list[str] = []
        self.found: set[str] = set()

    def find(self, text: str) -> None:
        """A text that is secret as a whole."""
        if len(text) >= _SHORTEST and text not in _TOO_COMMON:
            self.found.add(text)

    @property
    def has_news(self) -> bool:
        """Whether it found what may stand in texts that it had passed before."""
        return any(not text.startswith(REFERENCE) for text in self.found - self.words)

    def below(self, mark: int, step: str) -> None:
        """The paths that were found since `mark` lead through one more step."""
        self.paths[mark:] = dict.fromkeys(step + path for path in self.paths[mark:])

    def without_words(self, text: str) -> str:
        """The text without the secrets that are known, however they are written."""
        return self._known.sub(lambda match: match[0] if match[0] in CONSTANTS else SECRET, text)

    @cached_property
    def _known(self) -> re.Pattern[str]:
        words = sorted(self.words, key=len, reverse=True)[:_MOST]
        forms = dict.fromkeys(CONSTANTS)
        for word in words:
            forms |= dict.fromkeys(
                (
                    word,
                    escape(word),
                    escape(word, {'"': "&quot;", "'": "&apos;"}),
                    json.dumps(word)[1:-1],
                    json.dumps(word, ensure_ascii=False)[1:-1],
                    quote(word, safe="", errors="replace"),
                    quote_plus(word, errors="replace"),
                )
            )
        return re.compile("|".join(map(re.escape, forms)))


Change = Callable[[Any, Pass], Any]


class Texts:
    """The leaves. What was found harmless is remembered: most texts come again and again."""

    def __init__(self, token: Callable[[str], str]) -> None:
        self._token = token
        self._harmless: dict[str, None] = {}
        self._keys: dict[str, bool] = {}  # harmless as texts; whether they are the name of a secret

    def open(self, text: Any, under_way: Pass) -> Any:
        """A text that may have a secret in it."""
        if under_way.is_plain and text in self._harmless:
            return text
        redacted = self.redacted(text, under_way)
        if redacted is not text:
            under_way.paths.append("")
        return redacted

    def redacted(self, text: str, under_way: Pass) -> str:
        """The same without noting where."""
        if text in self._harmless:
            redacted = text
        elif rules.is_plain(text) or text in CONSTANTS:
            redacted = self._remember(text)
        else:
            found: set[str] = set()
            redacted = rules.without_secrets(text, self._token, found)
            if redacted == text:
                redacted = self._remember(text)
            for each in found:
                under_way.find(each)
        if not under_way.is_plain:
            if under_way.words:
                redacted = under_way.without_words(redacted)
            if under_way.guarded:
                redacted = rules.without_quotes(redacted)
        return text if redacted == text else redacted

    def key(self, name: Any, under_way: Pass) -> tuple[str, bool]:
        """A map's key, and whether it is the name of a secret."""
        if under_way.is_plain:
            known = self._keys.get(name)
            if known is not None:
                return name, known
        redacted = self.redacted(name, under_way)
        is_secret = is_secret_name(name)
        if redacted is name:
            if len(self._keys) >= _KNOWN:
                self._keys.clear()
            if len(name) <= _LONGEST_KNOWN:
                self._keys[name] = is_secret
        return redacted, is_secret

    def reference(self, text: Any, under_way: Pass) -> Any:
        """A reference that is no credential, unless it is one all the same."""
        if text[:10] != REFERENCE:
            return self.open(text, under_way)
        return self.credential(text, under_way) if text in under_way.references else text

    def named_reference(self, change: Change, text: Any, under_way: Pass) -> Any:
        """What should be a reference by its type and is secret by its name."""
        return (change if text[:10] == REFERENCE else self.secret)(text, under_way)

    def credential(self, text: Any, under_way: Pass) -> Any:
        """A session: its token."""
        if text == "" or text == REFERENCE + "NULL":
            return text
        token = self._token(text)
        if token == text:
            return text
        under_way.found.add(text)
        under_way.references.add(text)
        under_way.paths.append("")
        return token

    def secret(self, text: Any, under_way: Pass) -> Any:
        """A text that is secret as a whole."""
        if text == "" or text in CONSTANTS:
            return text
        if rules.is_reference(text):
            return self.credential(text, under_way)
        under_way.find(text)
        under_way.paths.append("")
        return SECRET

    def _remember(self, text: str) -> str:
        if len(text) <= _LONGEST_KNOWN:
            if len(self._harmless) >= _KNOWN:
                self._harmless.clear()
            self._harmless[text] = None
        return text
