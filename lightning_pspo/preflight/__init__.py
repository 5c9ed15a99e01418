"""What a user asks before a long run: doctor and selfcheck."""
