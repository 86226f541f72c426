"""The header of a segment, whoever makes the capture: which tool, which interfaces, which rules and key redacted it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from bridges.capture.records import SCHEMA, Header
from bridges.capture.redaction import Redactor
from bridges.interfaces import model


def header_of(
    redactor: Redactor,
    dialects: Mapping[str, str],
    source: str,
    segment: int,
    chain: str,
    *,
    host: str = "",
    boot: str = "",
    now: tuple[int, int] = (0, 0),
) -> Header:
    """`dialects` by service; `now` are nanoseconds, real and mono. Host, boot and now are left out where not known."""
    real, mono = now
    return Header(
        schema=SCHEMA,
        tool=f"xcp-bridge {metadata.version('xcp-dbus-bridge')}",
        host=host,
        boot=boot,
        real=str(real),
        mono=str(mono),
        segment=segment,
        chain=chain,
        source=source,
        interfaces={name: model.digest(name, dialect) for name, dialect in dialects.items()},
        dialects=dict(dialects),
        redaction=redactor.policy,
        key=redactor.key_id,
    )
