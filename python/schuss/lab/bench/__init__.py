"""`schuss bench`: the time of a step, side by side with what others need for the same."""
