"""The demo. This file imports nothing: a worker that loads `demo.versions` would import it all."""
