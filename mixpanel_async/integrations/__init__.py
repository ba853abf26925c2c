"""Helpers for frameworks; each needs its extra."""
