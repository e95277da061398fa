"""A policy, a world, and the one loop in which they meet; no market, no language, no torch."""
