"""Workspaces on their way from a sandbox into session storage."""
