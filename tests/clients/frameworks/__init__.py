"""The whole suite: what builds on the SDKs. ``make test-clients`` installs and runs it."""
