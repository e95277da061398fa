"""The actor-critic on a causal language model, and its adapters."""
