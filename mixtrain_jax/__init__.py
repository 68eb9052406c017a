"""MixTraining in JAX: two-stage object detectors trained beside an EMA teacher."""

__version__ = "0.1.0"
