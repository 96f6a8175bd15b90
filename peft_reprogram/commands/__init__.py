"""What the command line does, each a module with `main(arguments)`; `python -m` and `accelerate launch -m` run them too."""
