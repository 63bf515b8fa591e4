"""What a person may set, where that comes from, and what speaks against it."""

from etl.settings.fields import DEFAULT_MODEL, DEMO_MODEL, PROFILES, Settings

__all__ = ["DEFAULT_MODEL", "DEMO_MODEL", "PROFILES", "Settings"]
