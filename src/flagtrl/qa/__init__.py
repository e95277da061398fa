"""Financial QA on lm-eval: what an adapter changes beside trading, and what of the language it
keeps.
"""
