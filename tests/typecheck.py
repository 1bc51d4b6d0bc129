"""The type checker behind --jaxtyping-packages: beartype, where an int will do for a float."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
