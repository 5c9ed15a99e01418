"""The mathematics: surrogates, KL, advantages, alpha, schedules, trust region."""
