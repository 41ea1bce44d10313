"""Sessions: one visit or login on one channel."""

from omnistate.session._api import Session, session_of_token, start_session

__all__ = ["Session", "session_of_token", "start_session"]
