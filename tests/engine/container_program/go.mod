module derp-relays/tests/engine/container_program

go 1.26.0
