"""What runs in the child processes: a module for each section, with a function `measure` that gives plain figures."""
