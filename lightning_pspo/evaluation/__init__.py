"""Measure a policy: sampling, metrics, votes, results and comparisons."""
