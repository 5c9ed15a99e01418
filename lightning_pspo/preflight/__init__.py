"""Examine a run before it starts: doctor and selfcheck."""
