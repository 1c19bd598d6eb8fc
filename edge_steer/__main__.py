"""`python -m edge_steer` is `edge-steer`."""

from edge_steer.commands.main import main

if __name__ == "__main__":
    main()
