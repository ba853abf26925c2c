"""Runtime: the event loop, threads, clocks, random ids, fork detection and log lines.

The only package of the client that reads a system clock or distinguishes asyncio from trio. May import `_model`.

Start reading at `event_loop.py`.
"""
