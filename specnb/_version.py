"""The version of specnb; pyproject.toml and the notebooks take it from here."""

__version__ = "0.1.0"
