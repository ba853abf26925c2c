"""Storage of an emulated project on disk, in one SQLite file.

Of the emulator, it imports only from `project`: the change sets that it writes, and the rows in them.

Start reading at `store.py`.
"""
