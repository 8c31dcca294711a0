"""Planning in closed loop: environments, policies, episodes, gauges of a world model, the report."""
