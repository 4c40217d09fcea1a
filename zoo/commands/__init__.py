"""The commands of `weightscape` that need no generators: each picks a function, calls it, prints what came back."""
