"""The command line of derp-relays."""
