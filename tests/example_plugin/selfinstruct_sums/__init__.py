"""Word problems about sums: a recipe that asks for them, a filter that adds up, a format, and a backend for tests."""
