"""The views of the tests of the Django engine."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path


def put(request: HttpRequest) -> JsonResponse:
    request.session.update(request.GET.dict())
    return JsonResponse(dict(request.session.items()))


async def aput(request: HttpRequest) -> JsonResponse:
    await request.session.aupdate(request.GET.dict())
    return JsonResponse(dict(await request.session.aitems()))


def enter(request: HttpRequest) -> JsonResponse:
    """As django.contrib.auth.login does it."""
    request.session.cycle_key()
    request.session["_auth_user_id"] = request.GET["as"]
    return JsonResponse(dict(request.session.items()))


def leave(request: HttpRequest) -> JsonResponse:
    request.session.flush()
    return JsonResponse({})


urlpatterns = [path(view.__name__, view) for view in (put, aput, enter, leave)]
