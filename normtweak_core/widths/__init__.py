"""A width for each linear: what each costs, and which are allotted."""
