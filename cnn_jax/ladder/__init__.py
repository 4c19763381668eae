"""Stages times seeds as one experiment: the plan, its processes, and its results."""
