"""Profile query, in pages.

Sources: https://docs.mixpanel.com/reference/engage-query (read 2026-08-21), and the requests of `mixpanel-utils` 2.2.7,
which call the parameter `where` also `selector`.

Decisions where Mixpanel's documents are silent, or where the emulator differs
    - In `where`, `properties` and `user` both mean the profile. `$distinct_id` is the canonical id.
    - `filter_by_cohort`, `behaviors`, `search_parameters` and `data_group_id` are refused with 400, because a response
      that ignores them would be wrong. Other unknown parameters are ignored.
    - All pages show the state at the first page. The latest 16 queries are remembered, fewer if they have more than
      2,000,000 profiles together; the session of an older query is refused with 400. `page_size` defaults to 1,000, and
      is at most 10,000.
    - Access as in `export`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .access import Access
from .profiles import Profile
from .project import Project
from .queries import InvalidQueryError, ReadRequest, integer, reject_unsupported, string_list, where_parameter
from .responses import EmulatorResponse, error_response, json_response
from .where import Where

QUERIES: Final = ("/api/2.0/engage", "/api/query/engage")

_PAGE_SIZE: Final = 1_000
_MAX_PAGE_SIZE: Final = 10_000
_MAX_SESSIONS: Final = 16
_MAX_REMEMBERED: Final = 2_000_000

_Found = list[tuple[str, Profile]]


class ProfileQueries:
    """Profile query, with the sessions of its latest queries.

    The lock of the project is held only to copy references to the profiles, not while they are selected and encoded.

    Args:
        lock: lock of the project, which also protects the sessions.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._sessions: OrderedDict[str, _Found] = OrderedDict()
        self._project: Project | None = None
        self._session_count = 0

    def respond(self, query: ReadRequest, project: Project, access: Access, now: float) -> EmulatorResponse:
        """Return one page of profiles.

        Args:
            query: the request.
            project: project of the profiles.
            access: access rules of the project.
            now: current time in seconds since the epoch.
        """
        refusal = query.authorization_error(access)
        if refusal is not None:
            return refusal
        try:
            return self._page(query.parameters, project, now)
        except InvalidQueryError as error:
            return error_response(query.path, 400, str(error))

    def _page(self, parameters: Mapping[str, str], project: Project, now: float) -> EmulatorResponse:
        reject_unsupported(parameters, "filter_by_cohort", "behaviors", "search_parameters", "data_group_id")
        where = where_parameter(parameters, "where", "selector")
        page = integer(parameters, "page", 0, 0, 999_999_999) or 0
        size = integer(parameters, "page_size", _PAGE_SIZE, 1, _MAX_PAGE_SIZE) or _PAGE_SIZE
        output = parameters.get("output_properties")
        kept = frozenset(string_list("output_properties", output)) if output else None
        session = parameters.get("session_id")
        if session:
            found = self._known_session(session, project)
        else:
            found = _selected(self._profiles(parameters, project), where)
            session = self._remember(found, project, now)
        content = {
            "page": page,
            "page_size": size,
            "session_id": session,
            "status": "ok",
            "total": len(found),
            "results": [
                {"$distinct_id": person, "$properties": profile if kept is None else _keep(profile, kept)}
                for person, profile in found[page * size : (page + 1) * size]
            ],
        }
        return json_response(200, content)

    def _profiles(self, parameters: Mapping[str, str], project: Project) -> Iterable[tuple[str, Profile]]:
        """Return the profiles that `distinct_id` and `distinct_ids` name; all without these parameters.

        Profiles are replaced and never changed, so no copies are needed.
        """
        ids = parameters.get("distinct_ids")
        wanted = string_list("distinct_ids", ids) if ids else []
        if parameters.get("distinct_id"):
            wanted.append(parameters["distinct_id"])
        with self._lock:
            people = project.all_profiles()
            canonical = dict.fromkeys(project.reported_canonical_id(one) for one in wanted)
        return [(one, people[one]) for one in canonical if one in people] if wanted else people.items()

    def _known_session(self, session: str, project: Project) -> _Found:
        with self._lock:
            self._forget_other_projects(project)
            found = self._sessions.get(session)
            if found is None:
                raise InvalidQueryError("session_id is unknown or expired; repeat the query without session_id")
            self._sessions.move_to_end(session)
        return found

    def _remember(self, found: _Found, project: Project, now: float) -> str:
        with self._lock:
            self._forget_other_projects(project)
            self._session_count += 1
            session = f"{int(now)}-{self._session_count}"
            self._sessions[session] = found
            while len(self._sessions) > 1 and (
                len(self._sessions) > _MAX_SESSIONS or sum(map(len, self._sessions.values())) > _MAX_REMEMBERED
            ):
                self._sessions.popitem(last=False)
        return session

    def _forget_other_projects(self, project: Project) -> None:
        # A reset creates a new project. Sessions of the old one would show deleted data.
        if project is not self._project:
            self._project = project
            self._sessions.clear()


def _selected(people: Iterable[tuple[str, Profile]], where: Where | None) -> _Found:
    if where is None:
        return list(people)
    return [
        (person, profile)
        for person, profile in people
        if where.matches(known := {**profile, "$distinct_id": person}, known)
    ]


def _keep(profile: Profile, names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in profile.items() if name in names}
