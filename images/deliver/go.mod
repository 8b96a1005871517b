module derp-relays/images/deliver

go 1.26.6
