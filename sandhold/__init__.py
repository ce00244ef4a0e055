"""Durable owners for the sandboxes of AI-agent sessions."""
