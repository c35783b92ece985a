"""Tests, in folders by distance from the real world."""
