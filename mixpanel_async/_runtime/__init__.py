"""Runtime: the event loop, threads, clocks, random ids and fork detection.

The only package that reads a clock or knows asyncio from trio. May import `_model`. Start reading at `event_loop.py`.
"""
