module derp-relays/images/healthcheck

go 1.26.0
