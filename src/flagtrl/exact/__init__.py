"""Exact advantages, where nothing that an agent does moves the price."""
