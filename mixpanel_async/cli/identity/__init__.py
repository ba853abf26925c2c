"""Commands `mixpanel-async identity`: audit and repair of the ids of a project.

`command.py` registers the group; each command has its module. `events.py` reads the events of raw exports,
`download.py` fetches them, and `profile_query.py` reads user profiles. `repair` plans and applies calls that join ids,
and verifies their effect. `mixpanel_async.identity`, which is pure, computes what is found. Start reading at
`command.py`.
"""
