"""The client: `AsyncMixpanel` and its methods.

May import everything below: `flags`, `_delivery`, `_http`, `_spool`, `_encoding`, `_runtime`, `_model`.
Start reading at `client.py`, then `events.py` and `base.py`; `factory.py` builds the delivery pipeline.
"""
