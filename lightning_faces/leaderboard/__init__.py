"""The leaderboard: reads records, ranks them, and writes text, CSV, Markdown and a page. Starts without torch."""
