"""Listeners. Nothing below knows that they exist."""
