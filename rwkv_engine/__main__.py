"""`python -m rwkv_engine`: the same as `rwkv-engine`, also from a checkout nothing was installed from."""

from rwkv_engine.cli import main

if __name__ == "__main__":
    main()
