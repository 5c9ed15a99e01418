"""The parts of one training step, and what is checked before the first one."""
