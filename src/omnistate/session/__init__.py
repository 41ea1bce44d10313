"""Sessions: one visit or login on one channel."""

from omnistate.session._api import Session, session_of_token, start_session
from omnistate.session._commands import session_part

__all__ = ["Session", "session_of_token", "session_part", "start_session"]
