module derp-relays/tests/relay/environment_image

go 1.26.0
