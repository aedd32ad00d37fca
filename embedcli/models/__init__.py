"""Which model and which template: all that is known before weights are loaded. Imports no torch."""
