"""HTTP side of the emulator: ASGI application, server, routes, live stream and planned faults.

It may import all other sub-packages of the emulator. None of them imports it.

Start reading at `app.py`, which handles ingestion and flag requests. `routes.py` adds the endpoints that read data, the
live page and `/_emulator/`. `control_api.py` implements `/_emulator/`, and `stream.py` sends changes to the live page.
`faults.py` decides which requests fail, and `fault_controls.py` is its public interface. `guard.py` checks hosts and
origins.
"""
