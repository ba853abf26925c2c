"""Feature flags of an emulated project.

Of the emulator, it imports only from `project`: access rules and responses. It shares no code with the client's flags.

Start reading at `flags.py`. `jsonlogic.py` evaluates rules.
"""
