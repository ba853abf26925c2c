"""Feature flags of the emulator.

Start reading at `flags.py`; `jsonlogic.py` evaluates rules.
"""
