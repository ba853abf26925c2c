"""Command `mixpanel-async demo`: a guided tour that checks each of its statements against a local emulator.

Start reading at `command.py`. `scenario.py` holds the steps, `output.py` prints them and counts expectations. Modules
here import only public names of `mixpanel_async`, plus Typer, Rich and anyio.
"""
