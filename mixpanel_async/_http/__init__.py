"""HTTP: requests, retries and connections.

The only package that imports httpx, httpcore and tenacity. May import `_encoding`, `_runtime` and `_model`.

Start reading at `api.py` for requests whose caller waits for the response, at `transport.py` for a single attempt, and
at `retry.py` for backoff.
"""
