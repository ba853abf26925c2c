"""Model: configuration, credentials, errors, records, outcomes and statistics.

Values and their validation. Imports the standard library only. Start reading at `config.py` and `records.py`.
"""
