"""The words for shapes in signatures: `Float[Tensor, "draft vocab"]`.

Where jaxtyping is installed they are its own, and checked under pytest. Where it is not, as on
Colab, they stand for the bare tensor: reading a signature must not cost an installation.
"""

try:
    from jaxtyping import Bool, Float, Float64, Int
except ImportError:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]

    Bool = Float = Float64 = Int = _Unchecked

__all__ = ["Bool", "Float", "Float64", "Int"]
