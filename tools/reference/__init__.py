"""Generator of the pages under `docs/reference`, run by `python -m tools.reference`.

Each module makes one page, or the pages of one kind, from what the code declares. `pages.py` lists them.
`griffe_extension.py` is loaded by mkdocstrings, which writes the details of the API pages when the site is built.
"""
