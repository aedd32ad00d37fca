"""What Python programs use: `import embedcli` shows the names of this room."""
