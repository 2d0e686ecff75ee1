"""Listings: what they are, which rules they keep, where they are stored, and their endpoints."""

from realestate.listings._model import STATUSES, Draft, Listing, Page, Search, Status
from realestate.listings._routes import create_listing, get_listing, search_listings
from realestate.listings._rules import check_draft, find_problems
from realestate.listings._store import find, lock_status, look_alikes, move, review_queue, search

__all__ = [
    "STATUSES",
    "Draft",
    "Listing",
    "Page",
    "Search",
    "Status",
    "check_draft",
    "create_listing",
    "find",
    "find_problems",
    "get_listing",
    "lock_status",
    "look_alikes",
    "move",
    "review_queue",
    "search",
    "search_listings",
]
