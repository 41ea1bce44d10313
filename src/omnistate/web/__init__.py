"""Sessions for web frameworks: `SessionMiddleware` for Starlette and FastAPI; for Django, `omnistate.web.django`."""

from omnistate.web._asgi import SessionMiddleware, current_customer, current_session, sign_in, sign_out

__all__ = ["SessionMiddleware", "current_customer", "current_session", "sign_in", "sign_out"]
