"""Commands, one file per noun. All but ``serve`` are clients: they speak to a server as any other program does."""
