"""Connections and secrets of owners and sessions, encrypted, in SQL."""
