"""Markets, ledger, rewards, environment and metrics. Knows no language: imports neither torch nor
transformers.
"""
