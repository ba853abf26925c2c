"""One emulated Mixpanel project: ingestion, identities, profiles and exports.

Start reading at `project.py`; `ingestion.py` handles one request, `identity.py` joins ids.
"""
