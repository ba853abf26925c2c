"""Live page of the emulator: its static files, and the feed of changes that it shows.

Of the emulator, the Python modules import only from `project`. `http/stream.py` sends the feed to browsers.

Start reading at `feed.py` for the server side, and at `app.js` for the page.
"""
