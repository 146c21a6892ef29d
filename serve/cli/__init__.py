"""The command line: one module per noun; ``main`` puts them together, ``output`` prints, ``options`` they share."""
