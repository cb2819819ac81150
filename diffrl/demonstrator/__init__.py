"""The scripted operator, who shows a task a few times."""
