"""A run's state on disk: names, integrity, saving, compatibility, export."""
