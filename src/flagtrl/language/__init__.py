"""Observations to prompts, prompts to token ids."""
