"""Code of the child processes: one module per section, whose function `measure` returns figures."""
