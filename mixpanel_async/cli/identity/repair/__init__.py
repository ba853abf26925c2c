"""Commands `mixpanel-async identity plan`, `apply` and `verify`: join ids that belong to one person, with care.

Start reading at `plan_command.py`, `apply_command.py` and `verify_command.py`. The modules by subject:

- Reading: `pairs` reads the pairs to join, `known_ids` what the events of the project say about its ids, `profiles` its
  user profiles.
- Planning: `calls` translates a pair into a call of the project's ID merge system, `planner` decides which calls are
  sent and in which order, and `plan_file` writes and reads the result.
- Sending: `journal` records each call before and after it, `pace` limits the rate, `sender` makes one call, and
  `apply_run` sends all of them.
- Reading back: `verification` compares an export with the plan.

`calls`, `planner`, `profiles`, `pace` and `verification` are pure.
"""
