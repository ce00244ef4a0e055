"""What operators look at in a browser, and what decodes it for them."""
