"""Find what is wrong with a run before it starts: settings, data, tokenizer, machine, and a short measured probe."""

from lightning_pspo.preflight.doctor.findings import Finding, Severity

__all__ = ["Finding", "Severity"]
