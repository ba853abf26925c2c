"""The live page of the emulator: static files, and the feed of changes it shows.

Start reading at `feed.py`.
"""
