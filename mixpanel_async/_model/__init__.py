"""Model: configuration, credentials, errors, records, outcomes and statistics.

Values without behaviour; imports the standard library only. Start reading at `config.py` and `records.py`.
"""
