"""How PyTorch calls the layers of each family; see `cnnjax.pretrained`."""
