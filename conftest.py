"""Loads the fixtures that stand for real parts; see tests/fixtures_*.py."""

pytest_plugins = ["tests.fixtures_xenstored", "tests.fixtures_dbus", "tests.fixtures_host", "tests.fixtures_toolstack"]
