"""Interfaces written down first: one JSON file per service (the data), `model` (how it is read)."""
