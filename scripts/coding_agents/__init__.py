"""Coding agents' programs against a server of ours: scripts/try_agents.sh."""
