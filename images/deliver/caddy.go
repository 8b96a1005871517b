package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Caddy's default (caddyserver.com/docs/caddyfile/options#admin), on the loopback that is shared with it.
const admin = "http://127.0.0.1:2019"

const (
	poll = 100 * time.Millisecond
	// A configuration of thousands of sites is provisioned within seconds.
	loadTimeout = 5 * time.Minute
)

type caddy struct{ http *http.Client }

// answering returns Caddy once its admin API answers, within so many seconds.
func answering(seconds float64) (*caddy, error) {
	return &caddy{&http.Client{Timeout: loadTimeout}}, ask(admin+"/config/admin", seconds)
}

// ask waits until url is answered with a 2xx status, for so many seconds.
func ask(url string, seconds float64) error {
	limit := time.Duration(seconds * float64(time.Second))
	client := &http.Client{Timeout: limit}
	deadline := time.Now().Add(limit)
	for {
		answer, err := client.Get(url)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode/100 == 2 {
				return nil
			}
			err = fmt.Errorf("%s answers %s", url, answer.Status)
		}
		if time.Now().After(deadline) {
			return problem{"silent", err.Error()}
		}
		time.Sleep(poll)
	}
}

// load has Caddy check the configuration and change over to it, or say why not and go on as it is.
// One that is the same already changes nothing.
func (c *caddy) load(text string) error {
	answer, err := c.http.Post(admin+"/load", "text/caddyfile", strings.NewReader(text))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode == http.StatusOK {
		return nil
	}
	var explained struct{ Error string }
	if json.Unmarshal(said, &explained) != nil || explained.Error == "" {
		explained.Error = answer.Status + ": " + string(said)
	}
	return problem{"refused", explained.Error}
}

// heap returns the bytes that Caddy's heap holds after a collection.
func (c *caddy) heap() (uint64, error) {
	if _, err := c.get("/debug/pprof/heap?gc=1"); err != nil {
		return 0, err
	}
	told, err := c.get("/metrics")
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(strings.NewReader(told))
	for lines.Scan() {
		if value, found := strings.CutPrefix(lines.Text(), "go_memstats_heap_alloc_bytes "); found {
			bytes, err := strconv.ParseFloat(value, 64)
			return uint64(bytes), err
		}
	}
	return 0, fmt.Errorf("Caddy's metrics have no go_memstats_heap_alloc_bytes")
}

func (c *caddy) get(path string) (string, error) {
	answer, err := c.http.Get(admin + path)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("Caddy's %s answers %s", path, answer.Status)
	}
	return string(said), err
}
