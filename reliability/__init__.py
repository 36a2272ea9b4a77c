"""Campaigns that try to break Speech-XL: kills, damaged files, full disks, many clients, hostile names. See docs/reliability.md."""
