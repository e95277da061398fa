"""How runs are set up: presets, and where a setting's value comes from."""
