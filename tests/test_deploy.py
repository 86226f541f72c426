"""What is shipped for an installation can be used as it is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bridges.interfaces import model
from bridges.settings import decode

FURTHER = "# Further services"
DEPLOY = Path(__file__).parents[1] / "deploy"


def test_the_sample_settings_are_valid_and_say_the_defaults() -> None:
    """The sample names what would be so without it, and both services."""
    settings = decode((DEPLOY / "bridge.toml").read_bytes(), {})
    assert set(settings.services) == {"squeezed", "xenopsd"}
    assert settings.bus_address == "unix:path=/run/xcp/bus"


def test_the_lines_that_are_commented_out_are_valid_too() -> None:
    """Whoever removes a `# ` gets settings that can be read."""
    text = (DEPLOY / "bridge.toml").read_text().partition(FURTHER)[0]
    for line in re.findall(r"^# (\w+ = .*)$", text, re.MULTILINE):
        key = line.split(" = ")[0]
        section = text[: text.index(f"# {line}")].rpartition("\n[services.")[2].partition("]")[0]
        before, head, rest = text.partition(f"[services.{section}]")
        body, next_head, after = rest.partition("\n[")
        body = re.sub(rf"^{key} = .*$", "", body, flags=re.MULTILINE)
        sample = f"{before}{head}\n{line}\n{body}{next_head}{after}"
        assert section in decode(sample.encode(), {}).services


def test_the_further_services_are_valid_too() -> None:
    """Without its `# ` the last part of the sample names every other service that there is."""
    _, _, further = (DEPLOY / "bridge.toml").read_text().partition(FURTHER)
    lines = [line.removeprefix("#").strip() for line in further.partition("# [")[2].splitlines()]
    settings = decode(("[" + "\n".join(lines)).encode(), {})
    assert set(settings.services) == set(model.services()) - {"squeezed", "xenopsd"}


def test_the_unit_keeps_the_listeners_of_every_service() -> None:
    """Two sockets a service and as many stale ones; and the kernel may be asked about them."""
    text = (DEPLOY / "xcp-bridge.service").read_text()
    unit = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    assert int(unit["FileDescriptorStoreMax"]) >= 2 * 2 * len(model.services())
    assert (unit["Type"], unit["NotifyAccess"], unit["Restart"]) == ("notify", "main", "always")
    assert unit["ExecStopPost"].endswith(" release")
    assert "AF_NETLINK" in unit["RestrictAddressFamilies"].split()


@pytest.mark.parametrize("unit", ["xcp-bus.service", "xcp-bridge.service"])
def test_the_units_are_understood_by_systemd(unit: str, tmp_path: Path) -> None:
    """systemd-analyze has nothing to say, once the programs stand where the units expect them."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze (package systemd)")
    for name in ("xcp-bus.service", "xcp-bridge.service"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(?<==)/(?:opt|usr)/\S+", "/bin/true", text))
    done = subprocess.run(
        [program, "verify", "--man=no", tmp_path / unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
