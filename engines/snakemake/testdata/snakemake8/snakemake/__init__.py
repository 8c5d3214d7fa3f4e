__version__ = "8.30.0"
