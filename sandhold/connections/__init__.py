"""Connections of owners to providers: what a key is, who uses it, and how one is made, replaced and removed."""
