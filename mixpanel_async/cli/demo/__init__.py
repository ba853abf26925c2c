"""The command `mixpanel-async demo`.

Start reading at `command.py`; `scenario.py` holds the steps, `output.py` prints them.
"""
