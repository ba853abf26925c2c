"""Flask app with accounts. Mixpanel sees each visitor as the same person before and after sign-in.

    pip install . flask gunicorn     # in a clone of the repository
    export MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified
    gunicorn --chdir examples --threads 6 flask_app:app     # or: python examples/flask_app.py --port 8000
    curl -c jar -b jar localhost:8000/                                          # an anonymous page view
    curl -c jar -b jar localhost:8000/signup -d email=maya@example.com          # or /login
    curl -c jar -b jar -X POST localhost:8000/logout

The client runs in a background thread of each process. Tracking is queued: it costs the view microseconds and cannot
fail the request. `sign_in` joins the visitor to the user. In an Original or Legacy project it waits at most two seconds
for Mixpanel. After that the identity event waits in the queue, in order with the visitor's events, and the sign-up
continues. Records in the queue when the process exits are delivered.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from uuid import UUID

from flask import Flask, Response, abort, g, request, session

from mixpanel_async import AsyncMixpanel, BlockingBound

COOKIE = "mp_visitor"
# Replaces a database.
accounts: set[str] = set()

# At import time, also for gunicorn with --preload: a forked worker starts a thread for itself.
mixpanel = AsyncMixpanel.from_env({"MIXPANEL_ID_MERGE": "simplified", **os.environ}).start_in_thread()
app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "change me")


def current_mixpanel() -> BlockingBound:
    """Return the client bound to the visitor and the user of the request."""
    if "mixpanel" not in g:
        g.mixpanel = mixpanel.bind(
            device_id=visitor_of(request.cookies.get(COOKIE)),
            user_id=session.get("user"),
            link=session.get("link"),
            ip=request.remote_addr,
            sign_in_timeout=2.0,
        )
    bound: BlockingBound = g.mixpanel
    return bound


def visitor_of(cookie: str | None) -> str:
    """Return the anonymous id in the cookie, or a new one."""
    try:
        return str(UUID(cookie or "", version=4))
    except ValueError:
        return mixpanel.new_device_id()


@app.after_request
def keep_visitor(response: Response) -> Response:
    if "mixpanel" in g:
        response.set_cookie(COOKIE, g.mixpanel.device_id, max_age=365 * 86_400, httponly=True, samesite="Lax")
        session["link"] = g.mixpanel.link
    return response


@app.get("/")
def home() -> dict[str, str]:
    mp = current_mixpanel()
    mp.track("Page viewed", {"page": "/"})
    return {"hello": mp.user_id or "visitor"}


@app.post("/signup")
def sign_up() -> tuple[dict[str, str], int]:
    email = request.form["email"]
    if email in accounts:
        abort(409)
    accounts.add(email)
    mp = current_mixpanel()
    mp.sign_in(email, "Signed up", {"plan": "free"}, is_new=True)
    mp.people_set({"$email": email})
    session["user"] = email
    return {"account": email}, 201


@app.post("/login")
def log_in() -> dict[str, str]:
    email = request.form["email"]
    if email not in accounts:
        abort(403)
    current_mixpanel().sign_in(email)
    session["user"] = email
    return {"account": email}


@app.post("/logout")
def log_out() -> tuple[str, int]:
    mp = current_mixpanel()
    mp.track("Signed out")
    mp.sign_out()
    session.pop("user", None)
    return "", 204


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    # By default, SIGTERM ends a process without running what must run at exit. gunicorn handles it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app.run(port=parser.parse_args().port, threaded=True)
