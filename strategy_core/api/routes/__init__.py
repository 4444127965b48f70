"""The endpoints, one module per resource: each checks the token, calls one service and shapes its result."""

from fastapi import APIRouter

from strategy_core.api.requests import GuardedRoute, WebhookRoute

PREFIX = "/api/v1/strategy"


def guarded_router(tag: str) -> APIRouter:
    """Return a router whose routes need a token."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=GuardedRoute)


def webhook_router(tag: str) -> APIRouter:
    """Return a router whose routes need a token and accept bodies that another program defines."""
    return APIRouter(prefix=PREFIX, tags=[tag], route_class=WebhookRoute)
