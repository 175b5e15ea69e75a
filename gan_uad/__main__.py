"""`python -m gan_uad`: the same program as the console script `gan-uad`."""

from gan_uad.cli.main import main

if __name__ == "__main__":
    main()
