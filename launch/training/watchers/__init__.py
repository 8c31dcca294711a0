"""Lightning callbacks that monitor a training run; `launch.training.health` assembles them."""
