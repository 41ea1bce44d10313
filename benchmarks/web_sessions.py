"""WS: a request that has its session looked up and its deadline moved, through the middleware, against starsessions on
redis-py; a session of Django loaded and saved, against Django's own sessions in its Redis cache; bytes per session."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import redis.asyncio
from redis import Redis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import omnistate
from harness import ROUNDS, median, opened, run, throughput
from sync_api import rate

SESSIONS, CALLERS, SECONDS = 2_000, 64, 1.0
DATA = {"user": "ana", "language": "en-GB", "seen": ["cup", "pot", "mill"], "step": 3}


async def show(request: Request) -> Response:
    return Response(str(request.session.get("step")))


async def fill(request: Request) -> Response:
    request.session.update(DATA)
    return Response()


ROUTES = [Route("/show", show), Route("/fill", fill)]


async def ask(app: Any, path: str, cookie: bytes | None = None) -> bytes | None:
    """One request; the cookie that comes back."""
    found: list[bytes | None] = [None]
    headers = [] if cookie is None else [(b"cookie", cookie)]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        for name, value in message.get("headers", ()):
            if name == b"set-cookie":
                found[0] = value.partition(b";")[0]

    await app(dict(scope), receive, send)
    return found[0]


def starsessions_app(connection: Any) -> Starlette:
    from starsessions import SessionAutoloadMiddleware, SessionMiddleware
    from starsessions.stores.redis import RedisStore

    store = RedisStore(connection=connection, prefix="starsessions.")
    return Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(SessionMiddleware, store=store, lifetime=timedelta(days=14), rolling=True),
            Middleware(SessionAutoloadMiddleware),
        ],
    )


async def measure_asgi(port: int) -> dict[str, Any]:
    from omnistate.web import SessionMiddleware

    chance, raw = random.Random(1), Redis(port=port)
    pool = redis.asyncio.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=CALLERS, timeout=None)
    connection = redis.asyncio.Redis(connection_pool=pool)
    found: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    async with omnistate.connect(f"redis://127.0.0.1:{port}") as omni:
        ours = Starlette(routes=ROUTES, middleware=[Middleware(SessionMiddleware, omni=omni)])
        apps: dict[str, Any] = {"ours": ours, "starsessions": starsessions_app(connection)}
        cookies: dict[str, list[bytes]] = {}
        for name, app in apps.items():
            before = raw.info("memory")["used_memory"]
            cookies[name] = [await ask(app, "/fill") or b"" for _ in range(SESSIONS)]
            sizes[name] = (raw.info("memory")["used_memory"] - before) / SESSIONS
            assert all(cookies[name])

        def calling(name: str) -> Callable[[int], Awaitable[Any]]:
            app, its = apps[name], cookies[name]
            return lambda _: ask(app, "/show", chance.choice(its))

        for _ in range(ROUNDS):
            for name in apps:
                for callers in (1, CALLERS):
                    speed, _ = await throughput(calling(name), callers=callers, seconds=SECONDS)
                    found.setdefault(f"{name}, {callers}", []).append(speed)
    await connection.aclose()
    rates = {name: median(values) for name, values in found.items()}
    return {
        "per second": {name: round(value) for name, value in rates.items()},
        "rounds": {name: [round(value) for value in values] for name, values in found.items()},
        "results": [
            *(
                {
                    "id": "WS",
                    "what": f"request with its session, {callers} caller{'s' if callers > 1 else ''} / starsessions",
                    "value": rates[f"ours, {callers}"] / rates[f"starsessions, {callers}"],
                    "goal": ">= 3" if callers > 1 else "",
                    "unit": "x",
                }
                for callers in (1, CALLERS)
            ),
            {
                "id": "WS",
                "what": "bytes per session, with its customer",
                "value": round(sizes["ours"]),
                "goal": "",
                "unit": "B",
            },
            {
                "id": "WS",
                "what": "the same of starsessions",
                "value": round(sizes["starsessions"]),
                "goal": "",
                "unit": "B",
            },
        ],
    }


def measure_django(port: int) -> list[dict[str, Any]]:
    from django.conf import settings

    settings.configure(
        CACHES={
            "default": {
                "BACKEND": "django.core.cache.backends.redis.RedisCache",
                "LOCATION": f"redis://127.0.0.1:{port}",
            }
        },
        OMNISTATE={"url": f"redis://127.0.0.1:{port}"},
        SECRET_KEY="x" * 50,
    )
    from django.contrib.sessions.backends.cache import SessionStore as Theirs

    from omnistate.web.django import SessionStore as Ours

    chance, found = random.Random(1), dict[str, list[float]]()
    keys: dict[Any, list[str]] = {}
    for store in (Ours, Theirs):
        keys[store] = []
        for _ in range(SESSIONS):
            session = store()
            session.update(DATA)
            session.save()
            keys[store].append(session.session_key)

    def check(store: Any) -> None:
        session = store(chance.choice(keys[store]))
        assert session["step"] == 3
        session.save()  # as SESSION_SAVE_EVERY_REQUEST does, which moves the deadline

    for _ in range(ROUNDS):
        for name, store in (("ours", Ours), ("theirs", Theirs)):
            for threads in (1, 8):
                found.setdefault(f"{name}, {threads}", []).append(rate(lambda store=store: check(store), threads))
    rates = {name: median(values) for name, values in found.items()}
    return [
        {
            "id": "WS",
            "what": f"Django: load and save, {threads} thread{'s' if threads > 1 else ''} / its Redis cache",
            "value": rates[f"ours, {threads}"] / rates[f"theirs, {threads}"],
            "goal": ">= 3",
            "unit": "x",
        }
        for threads in (1, 8)
    ]


def main() -> dict[str, Any]:
    with opened("standalone") as store:
        found: dict[str, Any] = run(measure_asgi(store.ports[0]))
        found["results"] += measure_django(store.ports[0])
        return found


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
