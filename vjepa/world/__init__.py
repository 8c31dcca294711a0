"""World models: encode a frame, imagine in representation space what a sequence of actions would bring."""
