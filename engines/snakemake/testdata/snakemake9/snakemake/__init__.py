__version__ = "9.16.3"
