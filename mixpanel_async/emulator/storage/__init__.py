"""Persistence of the emulator: one SQLite file.

Start reading at `store.py`.
"""
