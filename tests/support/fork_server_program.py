"""Server of `fork_server`: `python fork_server_program.py SOCKET MODULE ...`.

It imports the modules once. For each request it forks a process, which runs a program as `python FILE ARGUMENTS` does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import socket
import sys
from pathlib import Path

_server = socket.socket(fileno=int(sys.argv[1]))
for _name in sys.argv[2:]:
    importlib.import_module(_name)
gc.freeze()

while True:
    _message, _streams, _, _ = socket.recv_fds(_server, 1 << 16, 3)
    if not _message:
        os._exit(0)
    _request = json.loads(_message)
    if "wait" in _request:
        _pid, _status = os.waitpid(_request["wait"], 0 if _request["block"] else os.WNOHANG)
        _answer = os.waitstatus_to_exitcode(_status) if _pid else None
    else:
        _answer = os.fork()
        if _answer == 0:
            break
    for _stream in _streams:
        os.close(_stream)
    _server.sendall(json.dumps(_answer).encode() + b"\n")

# In the forked process. The program must end as at the top level of a script, so this is no function.
_server.close()
for _number, _stream in enumerate(_streams):
    os.dup2(_stream, _number)
    os.close(_stream)
if "environment" in _request:
    os.environ.clear()
    os.environ.update(_request["environment"])
    os.chdir(_request["folder"])
    if _request["session"]:
        os.setsid()
    sys.path[0:1] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if os.environ.get("PYTHONUNBUFFERED"):
        for _output in (sys.stdout, sys.stderr):
            _output.reconfigure(line_buffering=True)  # type: ignore[attr-defined, union-attr, unused-ignore]
sys.argv = [_request["file"], *_request["arguments"]]
if _request["file"] != "-c":
    __file__ = _request["file"]
    sys.path[0] = str(Path(__file__).parent)
exec(compile(_request["code"], _request["file"], "exec", dont_inherit=True))
