"""HTTP side of the emulator: the ASGI application, its server, routes, live stream and planned faults.

Start reading at `app.py`.
"""
