"""Backtests, baselines and reports."""
