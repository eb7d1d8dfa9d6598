"""What a prediction is worth: scores, their records, intervals and speed.

Records, intervals and aggregates need NumPy alone, so that the leaderboard starts without torch; import each module by
its name.
"""
