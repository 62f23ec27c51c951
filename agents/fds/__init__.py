"""Schedules found by forward-mode differentiation (Micaelli & Storkey 2021)."""
