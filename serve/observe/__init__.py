"""What a gateway replica tells about itself: metrics, traces, logs. None of it holds a secret, a prompt or an answer."""
