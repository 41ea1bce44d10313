"""Sessions: one visit or login on one channel."""

from omnistate.session._api import OfSession, Session, list_sessions, read_endings, session_of_token, start_session
from omnistate.session._commands import Access, guarded, revoke, session_keys, session_part, stored_sessions
from omnistate.session._guard import Guard
from omnistate.session._model import SessionEnding, SessionEndings, SessionInfo, SessionPolicy, name_of

__all__ = [
    "Access",
    "Guard",
    "OfSession",
    "Session",
    "SessionEnding",
    "SessionEndings",
    "SessionInfo",
    "SessionPolicy",
    "guarded",
    "list_sessions",
    "name_of",
    "read_endings",
    "revoke",
    "session_keys",
    "session_of_token",
    "session_part",
    "start_session",
    "stored_sessions",
]
