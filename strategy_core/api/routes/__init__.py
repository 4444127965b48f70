"""The endpoints, by noun: each checks what the token reaches, calls one service, and gives its result a form."""

from fastapi import APIRouter

from strategy_core.api.requests import Foreign, Guarded

PREFIX = "/api/v1/strategy"


def guarded(tag: str) -> APIRouter:
    """Return a router whose every route needs a token."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=Guarded)


def foreign(tag: str) -> APIRouter:
    """Return a router whose every route needs a token, and takes what another program sends by its own rules."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=Foreign)
