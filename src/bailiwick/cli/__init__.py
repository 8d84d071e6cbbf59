"""Terminal front: a client of the API, plus up, run and demo. Commands import what they need when they run, so that help is fast."""
