"""embedcli: text columns into normalized vectors, with the template that the model was trained with."""

__version__ = "0.1.0"
