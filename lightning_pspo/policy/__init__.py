"""The language model that is trained: weights, adapters, forward pass, log-probs, sharding."""
