"""Listings: their model, rules, storage and endpoints."""

from realestate.listings._model import STATUSES, Draft, Listing, Page, Search, Status
from realestate.listings._routes import create_listing, get_listing, search_listings
from realestate.listings._rules import check_draft, find_problems
from realestate.listings._store import find, find_candidates, lock_status, review_queue, search, set_status

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
    "find_candidates",
    "find_problems",
    "get_listing",
    "lock_status",
    "review_queue",
    "search",
    "search_listings",
    "set_status",
]
