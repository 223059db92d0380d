"""The browser for pages; it starts when the first test of a file asks for it."""

from tests.support.browser import browser, pages

__all__ = ["browser", "pages"]
