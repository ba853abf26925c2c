"""Commands `mixpanel-async identity`: audit and repair of the ids of a project.

`command.py` registers the group; each command has its module. `events.py` reads the events of raw exports, and
`download.py` fetches them from Mixpanel's export endpoint. `mixpanel_async.identity`, which is pure, computes what is
found in them. Start reading at `command.py`.
"""
