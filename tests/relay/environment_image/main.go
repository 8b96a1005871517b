// Command environment_image starts derper as images do that take their settings
// from variables such as DERP_DOMAIN and DERP_ADDR. It stands in for such an
// image's own start script in tests, where no registry gives the image.
package main

import (
	"log"
	"os"
	"syscall"
)

func main() {
	command := []string{"/app/derper"}
	for _, setting := range []struct{ flag, variable, byDefault string }{
		{"hostname", "DERP_DOMAIN", "your-hostname.com"},
		{"certmode", "DERP_CERT_MODE", "letsencrypt"},
		{"certdir", "DERP_CERT_DIR", "/app/certs"},
		{"a", "DERP_ADDR", ":443"},
		{"stun", "DERP_STUN", "true"},
		{"stun-port", "DERP_STUN_PORT", "3478"},
		{"http-port", "DERP_HTTP_PORT", "80"},
		{"verify-clients", "DERP_VERIFY_CLIENTS", "false"},
	} {
		value, given := os.LookupEnv(setting.variable)
		if !given {
			value = setting.byDefault
		}
		command = append(command, "--"+setting.flag+"="+value)
	}
	log.Fatal(syscall.Exec(command[0], command, os.Environ()))
}
