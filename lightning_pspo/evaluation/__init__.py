"""Measuring a policy: sampling, metrics, votes, results, comparisons."""
