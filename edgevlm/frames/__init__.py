"""Frames of cameras, videos, folders and recordings, and the reader that keeps the newest one."""
