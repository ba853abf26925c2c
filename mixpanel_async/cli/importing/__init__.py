"""The command `mixpanel-async import`.

Start reading at `command.py`; `importer.py` runs an import, `column_mapping.py` describes how columns become records.
"""
