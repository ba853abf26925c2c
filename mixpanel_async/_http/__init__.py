"""HTTP: send one request and return its response.

The only package that imports httpx and httpcore. May import `_encoding`, `_runtime` and `_model`. Start reading at
`transport.py`.
"""
