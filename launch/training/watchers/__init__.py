"""What watches a training run, as Lightning callbacks; `launch.health` puts them together."""
