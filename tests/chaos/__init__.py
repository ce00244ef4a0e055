"""Everything dies at random moments, and no command is lost."""
