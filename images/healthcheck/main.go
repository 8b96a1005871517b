// Command healthcheck exits 0 if a GET of its only argument, a URL, is answered
// with a 2xx status within three seconds. Images made from scratch hold neither
// a shell nor curl, and Docker's health checks need something to run.
package main

import (
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: healthcheck URL")
		os.Exit(2)
	}
	client := http.Client{Timeout: 3 * time.Second}
	response, err := client.Get(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		fmt.Fprintln(os.Stderr, os.Args[1], response.Status)
		os.Exit(1)
	}
}
