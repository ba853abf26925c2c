"""Data and rules of one emulated Mixpanel project: ingestion, identities, profiles and exports.

Pure: no I/O, no threads, and clocks are passed in. Of the emulator, it imports only its own modules.

Start reading at `project.py`, which holds the data. `ingestion.py` handles one request with the help of `access.py`
(credentials), `bodies.py` (decoding), `checks.py` (validation) and `responses.py` (response bodies). `identity.py`
joins ids, and `hints.py` explains failed identity calls.
"""
